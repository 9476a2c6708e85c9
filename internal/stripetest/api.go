package stripetest

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// List answers as Stripe's list endpoints do: with a page of `limit` objects (10
// unless told, at most 100) after the one named by `starting_after`. objects is
// called for each request and returns all there are, in the order of the list;
// each needs an "id".
func List(objects func(r *http.Request) []json.RawMessage) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		query := r.URL.Query()
		limit := 10
		if query.Has("limit") {
			var err error
			if limit, err = strconv.Atoi(query.Get("limit")); err != nil || limit < 1 || limit > 100 {
				writeError(w, http.StatusBadRequest, "limit is not between 1 and 100")
				return
			}
		}
		rest := objects(r)
		if after := query.Get("starting_after"); after != "" {
			i := slices.IndexFunc(rest, func(o json.RawMessage) bool { return idOf(o) == after })
			if i < 0 {
				writeError(w, http.StatusBadRequest, "no such object: "+after)
				return
			}
			rest = rest[i+1:]
		}
		page := rest[:min(limit, len(rest))]
		writeJSON(w, http.StatusOK, map[string]any{
			"object":   "list",
			"url":      r.URL.Path,
			"has_more": len(page) < len(rest),
			"data":     append([]json.RawMessage{}, page...), // never null
		})
	})
}

// Events answers "GET /v1/events" as Stripe does: the newest first by their
// "created", and only what `types[]`, `created[gte]` and `created[lt]` ask for.
// events is called for each request and returns all there are, in any order.
func Events(events func(r *http.Request) []json.RawMessage) http.Handler {
	return List(func(r *http.Request) []json.RawMessage {
		query := r.URL.Query()
		types := query["types[]"]
		type event struct {
			Type    string
			Created int64
			raw     json.RawMessage
		}
		var found []event
		for _, raw := range events(r) {
			e := event{raw: raw}
			_ = json.Unmarshal(raw, &e) // what cannot be read is zero
			if (len(types) == 0 || slices.Contains(types, e.Type)) &&
				(!query.Has("created[gte]") || e.Created >= number(query.Get("created[gte]"))) &&
				(!query.Has("created[lt]") || e.Created < number(query.Get("created[lt]"))) {
				found = append(found, e)
			}
		}
		slices.SortStableFunc(found, func(a, b event) int { return cmp.Compare(b.Created, a.Created) })
		var list []json.RawMessage
		for _, e := range found {
			list = append(list, e.raw)
		}
		return list
	})
}

// Error answers with an error in the shape of Stripe's. An empty code is left
// out. A missing object is 404 with the code "resource_missing".
func Error(status int, code, message string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := map[string]any{"type": "invalid_request_error", "message": message}
		if code != "" {
			body["code"] = code
		}
		w.Header().Set("Request-Id", "req_stripetest")
		writeJSON(w, status, map[string]any{"error": body})
	})
}

// idOf returns the "id" of an object, or an empty string.
func idOf(object json.RawMessage) string {
	var fields struct{ ID string }
	_ = json.Unmarshal(object, &fields)
	return fields.ID
}

func number(s string) int64 {
	n, _ := strconv.ParseInt(s, 10, 64)
	return n
}

// StripeMock starts Stripe's own stand-in, stripe-mock, and returns the address
// of its API. It answers every valid request with samples, in the newest API
// version. It is killed when the test is over.
func StripeMock(t testing.TB) (url string) {
	t.Helper()
	path := Tool(t, "stripe-mock")
	ctx, cancel := context.WithCancel(context.Background())
	// With one of the two alone, it would open a port on every interface too.
	cmd := exec.CommandContext(ctx, path, "-http-addr", "127.0.0.1:0", "-https-addr", "127.0.0.1:0")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr strings.Builder // the command's until it has ended
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting stripe-mock: %v", err)
	}

	// It prints its port when it can be connected to.
	address := make(chan string, 1)
	read := make(chan struct{})
	go func() {
		defer close(read)
		lines := bufio.NewScanner(stdout)
		for lines.Scan() { // to the end: a full pipe would stop it
			if _, a, ok := strings.Cut(lines.Text(), "Listening for HTTP at address: "); ok {
				address <- a
			}
		}
	}()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		<-read
		cmd.Wait() // killed, or its stderr says why
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	select {
	case a := <-address:
		return fmt.Sprintf("http://%s", a)
	case <-ended:
		t.Fatalf("stripe-mock has ended: %s", stderr.String())
	case <-time.After(startTimeout):
		t.Fatalf("stripe-mock does not listen after %v", startTimeout)
	}
	return ""
}
