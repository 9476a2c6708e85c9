// Command chart checks deploy's Helm chart without a cluster: with Helm's own linter,
// strictly; by rendering it with each file of values in its ci folder, and reading
// the result as Kubernetes' types, in which an unknown or misplaced field is an
// error; that the parts of the result fit each other; and that the chart refuses
// what it must refuse, with a message that helps.
//
// Of the values for NATS's own chart, which is not here, it checks that what the
// gateway relies on is where that chart looks for it; and the manifest beside them is
// read as strictly as the chart's.
//
// It is a program of Helm's packages, and not the helm command, because that takes
// twice as long to build and knows nothing of Kubernetes' types. It is a module of
// its own, so that Helm's many dependencies do not move those of the other tools.
package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/util/yaml"
)

func main() {
	slog.SetDefault(slog.New(slog.DiscardHandler)) // Helm logs what it refuses
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: chart ROOT-OF-THE-REPOSITORY")
		os.Exit(2)
	}
	deploy := filepath.Join(os.Args[1], "deploy")
	if err := errors.Join(
		check(filepath.Join(deploy, "helm", "ordergate")),
		checkNATS(filepath.Join(deploy, "nats-values.yaml"), filepath.Join(os.Args[1], "go.mod")),
		checkManifest(filepath.Join(deploy, "move.yaml")),
	); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func check(dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "ci", "*-values.yaml"))
	if err != nil || len(files) == 0 {
		return fmt.Errorf("no values in %s/ci: %v", dir, err)
	}
	var problems []error
	for _, file := range files {
		objects, err := checkWith(dir, file)
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", file, err))
			continue
		}
		fmt.Printf("%s: %s\n", filepath.Base(file), strings.Join(objects, ", "))
	}
	return errors.Join(append(problems, checkRefusals(dir, files[0]))...)
}

// checkWith returns what the chart makes of a file of values.
func checkWith(dir, file string) ([]string, error) {
	values, err := common.ReadValuesFile(file)
	if err != nil {
		return nil, err
	}
	for _, message := range lint.RunAll(dir, values, "shop").Messages {
		if message.Severity >= support.WarningSev {
			return nil, message
		}
	}
	rendered, err := render(dir, values)
	if err != nil {
		return nil, err
	}
	objects, err := decode(rendered)
	if err != nil {
		return nil, err
	}
	url, _ := common.Values(values).PathValue("nats.url")
	if err := fit(objects, url != nil); err != nil {
		return nil, err
	}
	var names []string
	for _, o := range objects {
		names = append(names, o.kind+" "+o.GetName())
	}
	return names, nil
}

func render(dir string, values map[string]any) (map[string]string, error) {
	chart, err := loader.Load(dir)
	if err != nil {
		return nil, err
	}
	release := common.ReleaseOptions{Name: "shop", Namespace: "shop", Revision: 1, IsInstall: true}
	all, err := util.ToRenderValues(chart, values, release, common.DefaultCapabilities)
	if err != nil {
		return nil, err
	}
	return engine.Render(chart, all)
}

// object is one that Kubernetes is to have.
type object struct {
	kind string
	metav1.Object
}

// decode reads every document strictly.
func decode(rendered map[string]string) ([]object, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{appsv1.AddToScheme, corev1.AddToScheme, networkingv1.AddToScheme, policyv1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	decoder := json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme, scheme, json.SerializerOptions{Yaml: true, Strict: true})
	var objects []object
	for _, name := range slices.Sorted(maps.Keys(rendered)) {
		if !strings.HasSuffix(name, ".yaml") {
			continue
		}
		documents := yaml.NewYAMLReader(bufio.NewReader(strings.NewReader(rendered[name])))
		for {
			document, err := documents.Read()
			if err == io.EOF {
				break
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			if len(bytes.TrimSpace(document)) == 0 {
				continue
			}
			decoded, kind, err := decoder.Decode(document, nil, nil)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			named, ok := decoded.(metav1.Object)
			if !ok || named.GetName() == "" {
				return nil, fmt.Errorf("%s: a %s without a name", name, kind.Kind)
			}
			objects = append(objects, object{kind.Kind, named})
		}
	}
	return objects, nil
}

// fit returns what does not fit: the pods' labels and what selects them, files that
// are named and the volumes they are on, and the kind of gateway and what it stores in.
func fit(objects []object, shared bool) error {
	var problems []error
	wrong := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	var pods []corev1.PodTemplateSpec
	selectors := map[string]map[string]string{}
	claims := map[string]bool{}
	for _, o := range objects {
		switch o := o.Object.(type) {
		case *appsv1.StatefulSet:
			pods = append(pods, o.Spec.Template)
			selectors["StatefulSet"] = o.Spec.Selector.MatchLabels
			for _, claim := range o.Spec.VolumeClaimTemplates {
				claims[claim.Name] = true
			}
			if shared || *o.Spec.Replicas != 1 || len(claims) != 1 {
				wrong("a StatefulSet of %d with %d volumes, nats.url %t", *o.Spec.Replicas, len(claims), shared)
			}
		case *appsv1.Deployment:
			pods = append(pods, o.Spec.Template)
			selectors["Deployment"] = o.Spec.Selector.MatchLabels
			if roll := o.Spec.Strategy.RollingUpdate; !shared || *o.Spec.Replicas < 2 || roll == nil || roll.MaxUnavailable.String() != "0" || roll.MaxSurge.String() != "1" {
				wrong("a Deployment of %d that rolls with %v, nats.url %t", *o.Spec.Replicas, roll, shared)
			}
			if len(o.Spec.Template.Spec.TopologySpreadConstraints) == 0 {
				wrong("the gateways may all be on one machine")
			}
		case *corev1.Service:
			selectors["Service "+o.Name] = o.Spec.Selector
		case *policyv1.PodDisruptionBudget:
			selectors["PodDisruptionBudget"] = o.Spec.Selector.MatchLabels
		case *networkingv1.NetworkPolicy:
			selectors["NetworkPolicy"] = o.Spec.PodSelector.MatchLabels
		}
	}
	if len(pods) != 1 {
		return fmt.Errorf("%d kinds of pods, want one", len(pods))
	}
	pod := pods[0]
	for _, spread := range pod.Spec.TopologySpreadConstraints {
		selectors[spread.TopologyKey] = spread.LabelSelector.MatchLabels
	}
	for name, labels := range selectors {
		if len(labels) == 0 {
			wrong("%s selects everything", name)
		}
		for label, value := range labels {
			if pod.Labels[label] != value {
				wrong("%s selects %s=%s, pods have %v", name, label, value, pod.Labels)
			}
		}
	}
	for _, volume := range pod.Spec.Volumes {
		claims[volume.Name] = true
	}
	container := pod.Spec.Containers[0]
	for _, mount := range container.VolumeMounts {
		if !claims[mount.Name] {
			wrong("%s is mounted, and no volume", mount.Name)
		}
	}
	env := map[string]string{}
	for _, variable := range container.Env {
		if _, twice := env[variable.Name]; twice {
			wrong("%s is set twice", variable.Name)
		}
		env[variable.Name] = variable.Value
		if path := variable.Value; strings.HasPrefix(path, "/") && !slices.ContainsFunc(container.VolumeMounts, func(mount corev1.VolumeMount) bool {
			return strings.HasPrefix(path, mount.MountPath+"/") && holds(pod.Spec.Volumes, mount.Name, strings.TrimPrefix(path, mount.MountPath+"/"))
		}) {
			wrong("%s is %s, which is on no volume", variable.Name, path)
		}
	}
	for name, want := range map[string]bool{"ORDERGATE_NATS_URL": shared, "ORDERGATE_REPLICAS": shared, "ORDERGATE_DATA_DIR": !shared} {
		if _, set := env[name]; set != want {
			wrong("%s is set: %t, nats.url %t", name, set, shared)
		}
	}
	return errors.Join(problems...)
}

// holds tells whether a volume has a file, as far as its description says.
func holds(volumes []corev1.Volume, name, file string) bool {
	for _, volume := range volumes {
		if volume.Name == name && volume.Secret != nil && len(volume.Secret.Items) > 0 {
			return slices.ContainsFunc(volume.Secret.Items, func(item corev1.KeyToPath) bool { return item.Path == file })
		}
	}
	return true
}

// checkRefusals takes values that are good, and spoils them.
func checkRefusals(dir, file string) error {
	tests := []struct {
		name  string
		spoil map[string]any
		want  string
	}{
		{"no image", map[string]any{"image": map[string]any{"repository": "", "tag": ""}}, "image.repository"},
		{"no signing secret", map[string]any{"stripe": map[string]any{"existingSecret": ""}}, "stripe.existingSecret"},
		{"no certificate", map[string]any{"tls": map[string]any{"existingSecret": ""}}, "tls.existingSecret"},
		{"no access file", map[string]any{"access": map[string]any{"existingSecret": ""}}, "access.existingSecret"},
		{"an Ingress without a host", map[string]any{"ingress": map[string]any{"enabled": true}}, "ingress.host"},
		{"a secret among the values", map[string]any{"env": map[string]any{"STRIPE_API_KEY": "rk_test_1"}}, "STRIPE_API_KEY"},
		{"a door that the chart has set", map[string]any{"env": map[string]any{"ORDERGATE_ADMIN_ADDR": ":1"}}, "ORDERGATE_ADMIN_ADDR"},
		{"two gateways on one volume", map[string]any{"replicaCount": 2}, "replicaCount"},
		{"no gateway", map[string]any{"replicaCount": 0}, "/replicaCount"},
		{"an NKey for no servers", nats("url", "", "nkeySecret", "ordergate-nkey"), "nats.url"},
		{"servers without a scheme", nats("url", "nats:4222"), "/nats/url"},
		{"a password among the values", nats("url", "nats://shop:secret@nats:4222"), "/nats/url"},
		{"an NKey and a credentials file", nats("nkeySecret", "ordergate-nkey", "credsSecret", "ordergate-creds"), "nats.credsSecret"},
		{"a client certificate from nowhere", nats("clientCert", true), "nats.tlsSecret"},
		{"two copies", nats("replicas", 2), "/nats/replicas"},
		{"a key for what NATS stores", with(nats(), "encryption", map[string]any{"existingSecret": "ordergate-encryption"}), "encryption.existingSecret"},
		{"damage of a volume that is not there", with(nats(), "env", map[string]any{"ORDERGATE_ACCEPT_DAMAGE": "true"}), "ORDERGATE_ACCEPT_DAMAGE"},
		{"servers past the chart", map[string]any{"env": map[string]any{"ORDERGATE_NATS_URL": "nats://nats:4222"}}, "ORDERGATE_NATS_URL"},
		{"a misspelled value", map[string]any{"persistance": map[string]any{}}, "persistance"},
	}
	var problems []error
	for _, test := range tests {
		values, err := common.ReadValuesFile(file)
		if err != nil {
			return err
		}
		_, err = render(dir, loader.MergeMaps(values, test.spoil))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			problems = append(problems, fmt.Errorf("%s: %v, want an error with %q", test.name, err, test.want))
		}
	}
	if len(problems) == 0 {
		fmt.Printf("%d mistakes are refused\n", len(tests))
	}
	return errors.Join(problems...)
}

// nats returns values with servers, and with what is given in pairs.
func nats(pairs ...any) map[string]any {
	return map[string]any{"nats": with(map[string]any{"url": "nats://nats:4222"}, pairs...)}
}

func with(values map[string]any, pairs ...any) map[string]any {
	for i := 0; i < len(pairs); i += 2 {
		values[pairs[i].(string)] = pairs[i+1]
	}
	return values
}

// chartKeys are what NATS's chart has at the top of its values: it says nothing of
// one that is misspelled.
var chartKeys = []string{
	"config", "configMap", "container", "extraResources", "fullnameOverride", "global", "headlessService", "nameOverride", "namespaceOverride",
	"natsBox", "podDisruptionBudget", "podTemplate", "promExporter", "reloader", "service", "serviceAccount", "statefulSet", "tlsCA",
}

// checkNATS checks the values for NATS's chart. They name the version of nats-server
// that the gateway is tried with, which go.mod has.
func checkNATS(file, goMod string) error {
	values, err := common.ReadValuesFile(file)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	mod, err := os.ReadFile(goMod)
	if err != nil {
		return err
	}
	version := regexp.MustCompile(`(?m)^\s*github\.com/nats-io/nats-server/v2 v(\S+)`).FindSubmatch(mod)
	if version == nil {
		return fmt.Errorf("%s: no nats-server", goMod)
	}
	var problems []error
	wrong := func(format string, args ...any) {
		problems = append(problems, fmt.Errorf(file+": "+format, args...))
	}
	for key := range values {
		if !slices.Contains(chartKeys, key) {
			wrong("NATS's chart has no %s", key)
		}
	}
	for path, want := range map[string]string{
		"config.cluster.enabled":               "true",
		"config.cluster.replicas":              "3",
		"config.cluster.tls.enabled":           "true",
		"config.nats.tls.enabled":              "true",
		"config.jetstream.enabled":             "true",
		"config.jetstream.merge.sync_interval": "always",
		"config.merge.max_payload":             "<< 4MB >>",
		"container.image.tag":                  string(version[1]) + "-alpine",
		"podDisruptionBudget.enabled":          "true",
		"tlsCA.enabled":                        "true",
	} {
		if got, err := values.PathValue(path); err != nil || fmt.Sprint(got) != want {
			wrong("%s is %v (%v), must be %s", path, got, err, want)
		}
	}
	for _, table := range []string{
		"config.jetstream.fileStore.pvc",
		"config.merge.accounts.ORDERGATE",
		"podTemplate.topologySpreadConstraints",
	} {
		if got, err := values.Table(table); err != nil || len(got) == 0 {
			wrong("%s is missing: %v", table, err)
		}
	}
	if len(problems) == 0 {
		fmt.Printf("%s: NATS %s\n", filepath.Base(file), version[1])
	}
	return errors.Join(problems...)
}

// checkManifest reads a file of objects strictly.
func checkManifest(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	objects, err := decode(map[string]string{file: string(text)})
	if err == nil && len(objects) == 0 {
		err = fmt.Errorf("%s: no object", file)
	}
	for _, o := range objects {
		fmt.Printf("%s: %s %s\n", filepath.Base(file), o.kind, o.GetName())
	}
	return err
}
