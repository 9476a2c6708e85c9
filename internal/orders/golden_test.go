package orders

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

var update = flag.Bool("update", false, "write the golden files instead of comparing with them")

// TestGolden reads one event of each API version that moved something, as
// Stripe documents it, and compares the order that it makes with the file
// beside it. All people and addresses are invented.
func TestGolden(t *testing.T) {
	events, err := filepath.Glob("testdata/*.json")
	if err != nil {
		t.Fatal(err)
	}
	tested := 0
	for _, name := range events {
		if strings.HasSuffix(name, ".golden.json") {
			continue
		}
		tested++
		t.Run(strings.TrimSuffix(filepath.Base(name), ".json"), func(t *testing.T) {
			e := parse(t, readFile(t, name))
			// null is the golden of an event that makes no order.
			got := []byte("null\n")
			if c := applied(t, nil, e, noKey); c != nil {
				got = stableJSON(t, c.Order)
			}
			golden := strings.TrimSuffix(name, ".json") + ".golden.json"
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if want := readFile(t, golden); !bytes.Equal(got, want) {
				t.Errorf("%s differs from what the event gives now (-update writes it):\n%s", golden, got)
			}
		})
	}
	if tested < 12 {
		t.Errorf("%d events in testdata, want 12 or more", tested)
	}
}

// stableJSON formats an order the same way every time; protojson varies its
// white space on purpose.
func stableJSON(t *testing.T, o *ordergatev1.Order) []byte {
	t.Helper()
	raw, err := protojson.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := json.Indent(&out, raw, "", "  "); err != nil {
		t.Fatal(err)
	}
	out.WriteByte('\n')
	return out.Bytes()
}

func readFile(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
