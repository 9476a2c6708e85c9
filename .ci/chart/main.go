// Command chart checks a Helm chart without a cluster: with Helm's own linter,
// strictly; by rendering it with each file of values in its ci folder, and reading
// the result as Kubernetes' types, in which an unknown or misplaced field is an
// error; and that it refuses what it must refuse, with a message that helps.
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
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/util/yaml"
)

func main() {
	slog.SetDefault(slog.New(slog.DiscardHandler)) // Helm logs what it refuses
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: chart FOLDER")
		os.Exit(2)
	}
	if err := check(os.Args[1]); err != nil {
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
	return decode(rendered)
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

// decode reads every document strictly, and returns the kinds and names.
func decode(rendered map[string]string) ([]string, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{appsv1.AddToScheme, corev1.AddToScheme, networkingv1.AddToScheme, policyv1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	decoder := json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme, scheme, json.SerializerOptions{Yaml: true, Strict: true})
	var objects []string
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
			object, kind, err := decoder.Decode(document, nil, nil)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			named, ok := object.(interface{ GetName() string })
			if !ok || named.GetName() == "" {
				return nil, fmt.Errorf("%s: a %s without a name", name, kind.Kind)
			}
			objects = append(objects, kind.Kind+" "+named.GetName())
		}
	}
	return objects, nil
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
