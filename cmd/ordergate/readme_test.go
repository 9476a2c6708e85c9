package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

func readme(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Every setting is in the README's table, with its variable and its default.
func TestReadmeListsEverySetting(t *testing.T) {
	text := readme(t)
	parser, err := kong.New(&commands{})
	if err != nil {
		t.Fatal(err)
	}
	for _, command := range parser.Model.Children {
		if command.Name != "serve" {
			continue
		}
		for _, flag := range command.Flags {
			if flag.Name == "help" {
				continue
			}
			row := regexp.MustCompile("(?m)^\\| `--" + flag.Name + "` \\| `" + strings.Join(flag.Envs, "") + "` \\|(.*)$").FindStringSubmatch(text)
			if row == nil {
				t.Errorf("no row for --%s and %v", flag.Name, flag.Envs)
				continue
			}
			if flag.HasDefault && !strings.Contains(row[1], "`"+flag.Default+"`") {
				t.Errorf("the row of --%s does not name its default %s: %s", flag.Name, flag.Default, row[1])
			}
		}
	}
}

// The Go programs in the README compile.
func TestReadmeSnippetsCompile(t *testing.T) {
	snippets := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(readme(t), -1)
	if len(snippets) == 0 {
		t.Fatal("the README has no Go program")
	}
	for _, snippet := range snippets {
		file := filepath.Join(t.TempDir(), "main.go")
		if err := os.WriteFile(file, []byte(snippet[1]), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.CommandContext(t.Context(), "go", "vet", file).CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	}
}
