package main

import (
	"regexp"
	"testing"

	"github.com/alecthomas/kong"
)

// What deploy/ sets, or speaks of, are settings of `ordergate serve`.
func TestDeployNamesRealSettings(t *testing.T) {
	parser, err := kong.New(&commands{})
	if err != nil {
		t.Fatal(err)
	}
	settings := map[string]bool{"--help": true}
	for _, command := range parser.Model.Children {
		if command.Name != "serve" {
			continue
		}
		for _, flag := range command.Flags {
			settings["--"+flag.Name] = true
			for _, env := range flag.Envs {
				settings[env] = true
			}
		}
	}
	flag, env := regexp.MustCompile(`\B--[a-z][a-z-]+`), regexp.MustCompile(`\b(?:ORDERGATE|STRIPE|OTEL)_[A-Z_]*[A-Z]\b`)
	for _, file := range []struct {
		name  string
		names *regexp.Regexp
		least int
	}{
		{"systemd/ordergate.service", flag, 2},
		{"systemd/ordergate.service", env, 1},
		{"systemd/ordergate.env", env, 5},
		{"nginx/nginx.conf", flag, 1},
		{"README.md", env, 6},
		{"helm/ordergate/templates/statefulset.yaml", env, 10},
		{"helm/ordergate/templates/ingress.yaml", env, 1},
		{"helm/ordergate/templates/NOTES.txt", env, 1},
		{"helm/ordergate/values.yaml", env, 3},
		{"helm/ordergate/values.yaml", flag, 1},
		{"helm/ordergate/values.schema.json", env, 10},
		{"helm/ordergate/ci/everything-values.yaml", env, 2},
	} {
		names := file.names.FindAllString(deployed(t, file.name), -1)
		if len(names) < file.least {
			t.Errorf("%s: %d names of settings, want %d or more: does this test still find them?", file.name, len(names), file.least)
		}
		for _, name := range names {
			if !settings[name] {
				t.Errorf("%s: serve has no %s", file.name, name)
			}
		}
	}
}
