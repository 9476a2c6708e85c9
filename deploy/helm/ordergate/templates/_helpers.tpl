{{- define "ordergate.name" -}}
{{- $name := .Release.Name -}}
{{- if not (contains "ordergate" $name) }}{{ $name = printf "%s-ordergate" $name }}{{ end -}}
{{- $name | trunc 50 | trimSuffix "-" -}}
{{- end }}

{{- define "ordergate.selector" -}}
app.kubernetes.io/name: ordergate
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "ordergate.labels" -}}
{{ include "ordergate.selector" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "ordergate.image" -}}
{{ .Values.image.repository }}{{ if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ .Values.image.tag }}{{ end }}
{{- end }}

{{- define "ordergate.replicas" -}}
{{- .Values.replicaCount | default (ternary 2 1 (ne .Values.nats.url "")) | int -}}
{{- end }}

{{- /* All that is missing, together, each with its mend. */ -}}
{{- define "ordergate.check" -}}
{{- $missing := list -}}
{{- if not .Values.image.repository }}{{ $missing = append $missing "image.repository: where you pushed the image that ko built" }}{{ end -}}
{{- if not (or .Values.image.tag .Values.image.digest) }}{{ $missing = append $missing "image.tag or image.digest: which image" }}{{ end -}}
{{- if not .Values.stripe.existingSecret }}{{ $missing = append $missing "stripe.existingSecret: a Secret with the key webhook-secrets" }}{{ end -}}
{{- if .Values.insecure }}
{{- if .Values.tls.clientCA }}{{ $missing = append $missing "tls.clientCA: not together with insecure" }}{{ end -}}
{{- else }}
{{- if not .Values.tls.existingSecret }}{{ $missing = append $missing "tls.existingSecret: a Secret of the type kubernetes.io/tls, for gRPC and admin HTTP" }}{{ end -}}
{{- if not .Values.access.existingSecret }}{{ $missing = append $missing "access.existingSecret: a Secret with the key access, which says who may do what" }}{{ end -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.host) }}{{ $missing = append $missing "ingress.host: the name that Stripe sends to" }}{{ end -}}
{{- with .Values.nats -}}
{{- if .url }}
{{- if and .credsSecret .nkeySecret }}{{ $missing = append $missing "nats.credsSecret or nats.nkeySecret: one of them" }}{{ end -}}
{{- if and .clientCert (not .tlsSecret) }}{{ $missing = append $missing "nats.tlsSecret: a Secret with the client certificate (nats.clientCert)" }}{{ end -}}
{{- if $.Values.encryption.existingSecret }}{{ $missing = append $missing "encryption.existingSecret: not together with nats.url: NATS encrypts what it stores (cipher and key in its jetstream block)" }}{{ end -}}
{{- if $.Values.env.ORDERGATE_ACCEPT_DAMAGE }}{{ $missing = append $missing "env.ORDERGATE_ACCEPT_DAMAGE: not together with nats.url" }}{{ end -}}
{{- else }}
{{- if or .credsSecret .nkeySecret .tlsSecret .clientCert }}{{ $missing = append $missing "nats.url: the servers that the other values of nats are for" }}{{ end -}}
{{- if gt (include "ordergate.replicas" $ | int) 1 }}{{ $missing = append $missing "replicaCount: 1; or nats.url, for gateways that share what they store: a volume has one gateway" }}{{ end -}}
{{- end -}}
{{- end -}}
{{- if $missing }}{{ fail (printf "\n\nordergate cannot be installed like this. Give:\n  - %s\n" (join "\n  - " $missing)) }}{{ end -}}
{{- end }}

{{- /* The admin door answers anybody on these two paths. A kubelet does not verify the certificate. */ -}}
{{- define "ordergate.probe" -}}
{{- $values := (index . 0).Values -}}
httpGet:
  path: {{ index . 1 }}
  port: admin
  scheme: {{ ternary "HTTP" "HTTPS" $values.insecure }}
{{- end }}

{{- /* What is mounted below /etc/ordergate. The API key goes into the environment instead. */ -}}
{{- define "ordergate.secrets" -}}
- name: stripe
  secret: {{ .Values.stripe.existingSecret }}
  items: [webhook-secrets]
{{- if not .Values.insecure }}
- name: tls
  secret: {{ .Values.tls.existingSecret }}
- name: access
  secret: {{ .Values.access.existingSecret }}
  items: [access]
{{- end }}
{{- with .Values.encryption.existingSecret }}
- name: encryption
  secret: {{ . }}
  items: [key]
{{- end }}
{{- with .Values.nats }}
{{- with .credsSecret }}
- name: nats-creds
  secret: {{ . }}
  items: [creds]
{{- end }}
{{- with .nkeySecret }}
- name: nats-nkey
  secret: {{ . }}
  items: [nkey]
{{- end }}
{{- if .tlsSecret }}
- name: nats-tls
  secret: {{ .tlsSecret }}
  items: [ca.crt{{ if .clientCert }}, tls.crt, tls.key{{ end }}]
{{- end }}
{{- end }}
{{- end }}
