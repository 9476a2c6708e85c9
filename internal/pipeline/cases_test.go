package pipeline

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/orders"
	"github.com/ordergate/ordergate/internal/sample"
	"github.com/ordergate/ordergate/internal/stripeapi"
	"github.com/ordergate/ordergate/internal/stripetest"
)

// testCase is a sequence of events from a public report, with its correct result.
type testCase struct {
	Report, About string
	Serve         []string
	// API are the answers of Stripe's API by path and query; nil is without an API key.
	API    map[string]json.RawMessage
	Steps  []any
	Expect struct {
		Orders map[string]map[string]any
		Never  map[string]string
		Events map[string]string
		Log    []string
	}
}

// TestCases plays the cases through the pipeline, with time in which every task becomes due after
// each event.
func TestCases(t *testing.T) {
	dirs, err := filepath.Glob("testdata/cases/*")
	if err != nil || len(dirs) == 0 {
		t.Fatal(dirs, err)
	}
	for _, dir := range dirs {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			var c testCase
			raw, err := os.ReadFile(filepath.Join(dir, "case.json"))
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(raw, &c); err != nil {
				t.Fatal(err)
			}
			c.play(t, dir)
		})
	}
}

func (c *testCase) play(t *testing.T, dir string) {
	r := newRig(t, nil)
	if i := slices.Index(c.Serve, "--order-sources"); i >= 0 {
		r.pipeline.Sources = orders.Sources{PaymentIntents: strings.Contains(c.Serve[i+1], "payment_intent")}
		for _, source := range strings.Split(c.Serve[i+1], ",") {
			if reason, ok := strings.CutPrefix(source, "invoice."); ok {
				r.pipeline.Sources.Invoices = append(r.pipeline.Sources.Invoices, reason)
			}
		}
	}
	if c.API != nil {
		server := stripetest.NewServer(t)
		server.Handle("GET /", http.HandlerFunc(c.answer))
		client, err := stripeapi.New(stripeapi.Config{Keys: []string{"rk_test_cases"}, Base: server.URL, Rate: 1000, Logger: r.pipeline.Logger})
		if err != nil {
			t.Fatal(err)
		}
		r.pipeline.Stripe, r.pipeline.ItemsDeadline = client, 10*time.Second
		impatient(r)
	}
	for _, step := range c.Steps {
		file, ok := step.(string)
		if !ok {
			continue // a pause, which is after each event here
		}
		body, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		var event struct{ ID string }
		if err := json.Unmarshal(body, &event); err != nil {
			t.Fatal(err)
		}
		r.deliver(sample.Event{ID: event.ID, Body: body})
	}
	c.check(t, r)
}

// answer answers like Stripe's API: with the object at the path that fits best, else with an empty
// list or an error.
func (c *testCase) answer(w http.ResponseWriter, request *http.Request) {
	body := json.RawMessage(nil)
	for route, answer := range c.API {
		at, err := url.Parse(route)
		if err != nil {
			panic(err)
		}
		fits := at.Path == request.URL.Path
		for key, values := range at.Query() {
			switch key {
			case "_account":
				fits = fits && request.Header.Get("Stripe-Account") == values[0]
			case "_context":
				fits = fits && request.Header.Get("Stripe-Context") == values[0]
			default:
				fits = fits && request.URL.Query().Get(key) == values[0]
			}
		}
		if fits {
			body = answer
		}
	}
	var status struct {
		Status int `json:"_status"`
		Body   json.RawMessage
	}
	switch {
	case body != nil && json.Unmarshal(body, &status) == nil && status.Status != 0:
		w.WriteHeader(status.Status)
		body = status.Body
	case body == nil && (request.URL.Path == "/v1/checkout/sessions" || request.URL.Path == "/v1/events"):
		body = json.RawMessage(`{"object":"list","data":[],"has_more":false}`)
	case body == nil:
		w.WriteHeader(http.StatusNotFound)
		body = json.RawMessage(`{"error":{"type":"invalid_request_error","code":"resource_missing","message":"No such object"}}`)
	}
	w.Write(body)
}

func (c *testCase) check(t *testing.T, r *rig) {
	for id, fields := range c.Expect.Orders {
		record, err := r.log.DurableOrder(r.deadline(), id)
		if fields == nil {
			if !errors.Is(err, eventlog.ErrNotFound) {
				t.Errorf("%s: there is an order, or %v", id, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", id, err)
			continue
		}
		event, err := record.Event()
		if err != nil {
			t.Fatal(err)
		}
		text, err := protojson.Marshal(event.GetOrder())
		if err != nil {
			t.Fatal(err)
		}
		var order any
		if err := json.Unmarshal(text, &order); err != nil {
			t.Fatal(err)
		}
		for path, want := range fields {
			// The cases are of the REST API, which leaves nothing out that is empty.
			if got := pick(order, path); want == "" && got == nil {
				continue
			} else if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s: %s: %s", id, path, diff)
			}
		}
	}
	for id, never := range c.Expect.Never {
		for _, directive := range r.directives(id) {
			if directive.String() == never {
				t.Errorf("%s: a revision is %s", id, never)
			}
		}
	}
	for id, want := range c.Expect.Events {
		if got := r.status(id); "EVENT_OUTCOME_"+string(got.Outcome) != want {
			t.Errorf("%s is %+v, want %s", id, got, want)
		}
	}
	for _, text := range c.Expect.Log {
		if !strings.Contains(r.lines.String(), text) {
			t.Errorf("no log line has %q", text)
		}
	}
}

// pick returns the value at a path such as lineItems.0.quantity; nil if there is none.
func pick(value any, path string) any {
	for key := range strings.SplitSeq(path, ".") {
		switch v := value.(type) {
		case map[string]any:
			value = v[key]
		case []any:
			i, err := strconv.Atoi(key)
			if err != nil || i >= len(v) {
				return nil
			}
			value = v[i]
		default:
			return nil
		}
	}
	return value
}
