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
			// null is the golden of an event that makes no order; a follow-up's
			// is what it does to a paid one.
			got := []byte("null\n")
			if c := applied(t, nil, e, noKey); c != nil {
				got = stableJSON(t, c.Order)
			} else if e.OrderID() == "" && !e.Ignored() {
				got = followUpJSON(t, e)
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
	if tested < 30 {
		t.Errorf("%d events in testdata, want 30 or more", tested)
	}
}

// followUpJSON shows where a follow-up looks for its order, and what it does to
// a paid one of 9900 minor units of its own currency.
func followUpJSON(t *testing.T, e *Event) []byte {
	t.Helper()
	currency := "eur"
	if facts := e.followUp.facts; len(facts.GetRefunds()) > 0 {
		currency = facts.GetRefunds()[0].GetCurrency()
	}
	order := &ordergatev1.Order{
		Id: "cs_test_paid", Revision: 1, Source: ordergatev1.OrderSource_ORDER_SOURCE_CHECKOUT_SESSION,
		Status: statusPaid, SaleStatus: statusPaid, Directive: ship, Livemode: &e.Livemode, Account: e.Account,
		AddressState: notCollected, LineItemsState: complete, Currency: currency, Amounts: &ordergatev1.Amounts{Total: new(int64(9900))},
	}
	shown := struct {
		References []Reference     `json:"references"`
		Optional   bool            `json:"optional"`
		Kind       string          `json:"kind"`
		Order      json.RawMessage `json:"order"`
	}{e.References(), e.Optional(), "none", json.RawMessage("null")}
	if c := applied(t, order, e, LineItems{}); c != nil {
		shown.Kind = c.Kind.String()
		raw, err := protojson.Marshal(c.Order)
		if err != nil {
			t.Fatal(err)
		}
		shown.Order = raw
	}
	raw, err := json.MarshalIndent(shown, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return append(raw, '\n')
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
