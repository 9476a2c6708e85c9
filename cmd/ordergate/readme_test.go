package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/alecthomas/kong"

	"github.com/ordergate/ordergate/internal/orders"
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

// Every type of event that is used is in the README's table.
func TestReadmeListsEveryEventType(t *testing.T) {
	_, table, ok := strings.Cut(readme(t), "## What each Stripe event does")
	if !ok {
		t.Fatal("the README has no table of events")
	}
	table, _, _ = strings.Cut(table, "\n## ")
	for _, name := range orders.EventTypes() {
		object := name[:strings.LastIndex(name, ".")]
		short := "`" + strings.TrimPrefix(name, object) + "`"
		if !strings.Contains(table, "`"+name+"`") && !(strings.Contains(table, "`"+object+".") && strings.Contains(table, short)) {
			t.Errorf("no row for %s", name)
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
