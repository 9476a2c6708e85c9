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
{{- end }}
