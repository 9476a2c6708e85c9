package stripeapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/stripeapi"
	"github.com/ordergate/ordergate/internal/stripetest"
)

const (
	testKey = "rk_test_VerySecretTest1"
	liveKey = "rk_live_VerySecretLive1"
)

const linesPath = "/v1/checkout/sessions/{id}/line_items"

// session is the object that most tests read.
var session = stripeapi.Ref{ID: "cs_test_1"}

// stripe is a stand-in for Stripe in virtual time, and a client of it.
type stripe struct {
	*stripetest.Server
	*stripeapi.Client
	log *bytes.Buffer // what the client has logged; read it when nothing runs
}

// virtual runs a test in virtual time. adjust may change the client's settings.
func virtual(t *testing.T, test func(t *testing.T, s stripe), adjust ...func(*stripeapi.Config)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		server := stripetest.NewMemoryServer(t)
		var log bytes.Buffer
		config := stripeapi.Config{
			Keys:      []string{testKey, liveKey},
			Base:      server.URL,
			Transport: server.Transport,
			Logger:    slog.New(slog.NewTextHandler(&log, nil)),
		}
		for _, adjust := range adjust {
			adjust(&config)
		}
		client, err := stripeapi.New(config)
		if err != nil {
			t.Fatal(err)
		}
		test(t, stripe{server, client, &log})
		for _, key := range []string{testKey, liveKey} {
			if strings.Contains(log.String(), key) {
				t.Errorf("a key was logged:\n%s", &log)
			}
		}
	})
}

// objects is a list that is always the same.
func objects(raw ...string) func(*http.Request) []json.RawMessage {
	var list []json.RawMessage
	for _, object := range raw {
		list = append(list, json.RawMessage(object))
	}
	return func(*http.Request) []json.RawMessage { return list }
}

// sessionItem is a line item of a session, with its product.
func sessionItem(i int) string {
	return fmt.Sprintf(`{"id":"li_%d","object":"item","quantity":1,"price":{"id":"price_%d","object":"price","product":{"id":"prod_%d","object":"product","name":"Box %d"}}}`, i, i, i, i)
}

// answers gives one answer after the other, and the last one for ever after. It
// notes when each request came.
type answers struct {
	handlers []http.Handler

	mu    sync.Mutex
	times []time.Time
}

func (a *answers) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	handler := a.handlers[min(len(a.times), len(a.handlers)-1)]
	a.times = append(a.times, time.Now())
	a.mu.Unlock()
	handler.ServeHTTP(w, r)
}

// since returns when the requests came, counted from start.
func (a *answers) since(start time.Time) (all []time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, t := range a.times {
		all = append(all, t.Sub(start))
	}
	return all
}

func withHeader(key, value string, handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(key, value)
		handler.ServeHTTP(w, r)
	})
}

// text answers with something that is not in Stripe's form.
func text(status int, body string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(status)
		fmt.Fprint(w, body)
	})
}

// stall answers nothing until the client has hung up.
var stall = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })

var oneItem = stripetest.List(objects(sessionItem(0)))

func TestLineItemsOfAllPages(t *testing.T) {
	virtual(t, func(t *testing.T, s stripe) {
		var all []string
		for i := range 250 {
			all = append(all, sessionItem(i))
		}
		var mu sync.Mutex
		var got []string
		list := stripetest.List(objects(all...))
		s.Handle("GET "+linesPath, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			query, _ := url.QueryUnescape(r.URL.RawQuery)
			mu.Lock()
			got = append(got, fmt.Sprintf("%s?%s key=%s account=%s version=%s",
				r.URL.Path, query, strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "),
				r.Header.Get("Stripe-Account"), r.Header.Get("Stripe-Version")))
			mu.Unlock()
			list.ServeHTTP(w, r)
		}))
		items, err := s.LineItems(t.Context(), stripeapi.Ref{ID: "cs_live_1", Account: "acct_1", Livemode: true})
		if err != nil {
			t.Fatal(err)
		}
		if len(items) != len(all) {
			t.Fatalf("%d line items instead of %d", len(items), len(all))
		}
		for i, item := range items {
			if item.GetId() != fmt.Sprintf("li_%d", i) || item.GetProduct().GetName() != fmt.Sprintf("Box %d", i) {
				t.Fatalf("line item %d is %v", i, item)
			}
		}
		const common = " key=" + liveKey + " account=acct_1 version=" + stripeapi.APIVersion
		const path = "/v1/checkout/sessions/cs_live_1/line_items?expand[]=data.price.product&limit=100"
		want := []string{path + common, path + "&starting_after=li_99" + common, path + "&starting_after=li_199" + common}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("requests (-want +got):\n%s", diff)
		}
	})
}

func TestModesAndAccounts(t *testing.T) {
	virtual(t, func(t *testing.T, s stripe) {
		s.Handle("GET /v1/payment_intents/{id}", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, hasAccount := r.Header["Stripe-Account"]
			fmt.Fprintf(w, `{"id":"%s","object":"payment_intent","test":%t,"account":%t}`,
				r.PathValue("id"), r.Header.Get("Authorization") == "Bearer "+testKey, hasAccount)
		}))
		raw, err := s.PaymentIntent(t.Context(), stripeapi.Ref{ID: "pi_1"})
		if want := `{"id":"pi_1","object":"payment_intent","test":true,"account":false}`; err != nil || string(raw) != want {
			t.Errorf("got %s, %v; want %s", raw, err, want)
		}
	})
	virtual(t, func(t *testing.T, s stripe) {
		if s.Has(true) || !s.Has(false) {
			t.Errorf("Has(live) = %t, Has(test) = %t with a test key only", s.Has(true), s.Has(false))
		}
		_, err := s.LineItems(t.Context(), stripeapi.Ref{ID: "cs_live_1", Livemode: true})
		if !errors.Is(err, stripeapi.ErrNoKey) {
			t.Errorf("without a live key: %v", err)
		}
	}, func(config *stripeapi.Config) { config.Keys = []string{"", testKey} })
}

func TestRetriesServerErrors(t *testing.T) {
	failing := &answers{handlers: []http.Handler{
		stripetest.Error(500, "", "oops"),
		text(502, "<html>Bad gateway</html>"),
		text(200, `{"object":"list","data":[{"id":`), // cut off
		oneItem,
	}}
	virtual(t, func(t *testing.T, s stripe) {
		s.Handle("GET "+linesPath, failing)
		start := time.Now()
		items, err := s.LineItems(t.Context(), session)
		if err != nil || len(items) != 1 {
			t.Fatalf("%v, %v", items, err)
		}
		// 0.5 s, 1 s, 2 s, each half as much more or less.
		at := failing.since(start)
		for i, step := range []time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second} {
			if d := at[i+1] - at[i]; d < step/2 || d > step*3/2 {
				t.Errorf("attempt %d came %v after the one before, not about %v", i+2, d, step)
			}
		}
	})
}

func TestGivesUp(t *testing.T) {
	down := &answers{handlers: []http.Handler{text(503, "<html>personal data of "+testKey+"</html>")}}
	virtual(t, func(t *testing.T, s stripe) {
		s.Handle("GET "+linesPath, down)
		_, err := s.LineItems(t.Context(), session)
		if !errors.Is(err, stripeapi.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error: %v", err)
		}
		for _, must := range []string{"503", "5 attempts", "/v1/checkout/sessions/cs_test_1/line_items"} {
			if !strings.Contains(err.Error(), must) {
				t.Errorf("the error does not say %q: %v", must, err)
			}
		}
		if strings.Contains(err.Error(), "personal") {
			t.Errorf("the error quotes the answer: %v", err)
		}
		if len(down.times) != 5 {
			t.Errorf("%d attempts", len(down.times))
		}
	})
}

func TestRetryAfterPausesAll(t *testing.T) {
	for _, status := range []int{429, 503} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			busy := &answers{handlers: []http.Handler{
				oneItem,
				withHeader("Retry-After", "7", stripetest.Error(status, "rate_limit", "slow down")),
				oneItem,
			}}
			virtual(t, func(t *testing.T, s stripe) {
				s.Handle("GET "+linesPath, busy)
				start := time.Now()
				var callers sync.WaitGroup
				for i := range 30 {
					callers.Go(func() {
						// Another mode and other accounts share the pause.
						of := stripeapi.Ref{ID: fmt.Sprintf("cs_%d", i), Livemode: i%2 == 0, Account: fmt.Sprintf("acct_%d", i)}
						if _, err := s.LineItems(t.Context(), of); err != nil {
							t.Error(err)
						}
					})
				}
				callers.Wait()
				at := busy.since(start)
				if len(at) != 31 {
					t.Fatalf("%d requests instead of 31", len(at))
				}
				if at[2]-at[1] < 7*time.Second || at[2]-at[1] > 8*time.Second {
					t.Errorf("after an answer that asks for 7 s, the next request came %v later", at[2]-at[1])
				}
				if n := strings.Count(s.log.String(), "all pause"); n != 1 {
					t.Errorf("the pause was logged %d times:\n%s", n, s.log)
				}
			})
		})
	}
}

func TestRetryAfterIsBounded(t *testing.T) {
	for header, want := range map[string]time.Duration{
		"86400":                         time.Minute,
		"100000000000000":               time.Minute,
		"-5":                            0,
		"Wed, 21 Oct 2026 07:28:00 GMT": 0,
	} {
		busy := &answers{handlers: []http.Handler{withHeader("Retry-After", header, stripetest.Error(429, "", "")), oneItem}}
		virtual(t, func(t *testing.T, s stripe) {
			s.Handle("GET "+linesPath, busy)
			start := time.Now()
			if _, err := s.LineItems(t.Context(), session); err != nil {
				t.Fatal(err)
			}
			if got := busy.since(start)[1]; got < want || got > want+time.Second {
				t.Errorf("Retry-After %q: the next attempt came after %v, not %v", header, got, want)
			}
		})
	}
}

// A caller that cannot wait for the end of the pause learns so at once, and the
// last attempt's pause counts for the others too.
func TestPauseLongerThanContext(t *testing.T) {
	busy := &answers{handlers: []http.Handler{withHeader("Retry-After", "30", stripetest.Error(429, "", "slow down"))}}
	virtual(t, func(t *testing.T, s stripe) {
		s.Handle("GET "+linesPath, busy)
		start := time.Now()
		for range 3 {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			_, err := s.LineItems(ctx, session)
			cancel()
			if !errors.Is(err, stripeapi.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("error: %v", err)
			}
		}
		if waited := time.Since(start); waited != 0 || len(busy.times) != 1 {
			t.Errorf("%d requests and %v of waiting", len(busy.times), waited)
		}
	})
}

func TestStalls(t *testing.T) {
	halfBody := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, `{"object":"list","data":[`)
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	for name, handler := range map[string]http.Handler{"before the head": stall, "in the body": halfBody} {
		t.Run("once, "+name, func(t *testing.T) {
			virtual(t, func(t *testing.T, s stripe) {
				s.Handle("GET "+linesPath, &answers{handlers: []http.Handler{handler, oneItem}})
				start := time.Now()
				if _, err := s.LineItems(t.Context(), session); err != nil {
					t.Fatal(err)
				}
				if d := time.Since(start); d < 20*time.Second || d > 21*time.Second {
					t.Errorf("took %v with an attempt's timeout of 20 s", d)
				}
			})
		})
		t.Run("for ever, "+name, func(t *testing.T) {
			virtual(t, func(t *testing.T, s stripe) {
				s.Handle("GET "+linesPath, handler)
				start := time.Now()
				_, err := s.LineItems(t.Context(), session)
				if !errors.Is(err, stripeapi.ErrUnavailable) {
					t.Errorf("error: %v", err)
				}
				if d := time.Since(start); d < time.Minute || d > 2*time.Minute {
					t.Errorf("took %v", d)
				}
			})
		})
		t.Run("context, "+name, func(t *testing.T) {
			virtual(t, func(t *testing.T, s stripe) {
				s.Handle("GET "+linesPath, handler)
				ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
				defer cancel()
				start := time.Now()
				_, err := s.LineItems(ctx, session)
				if !errors.Is(err, stripeapi.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("error: %v", err)
				}
				if d := time.Since(start); d != 3*time.Second {
					t.Errorf("took %v with a deadline of 3 s", d)
				}
			})
		})
	}
	t.Run("canceled", func(t *testing.T) {
		virtual(t, func(t *testing.T, s stripe) {
			s.Handle("GET "+linesPath, stall)
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(5*time.Second, cancel)
			_, err := s.LineItems(ctx, session)
			if !errors.Is(err, context.Canceled) {
				t.Errorf("error: %v", err)
			}
		})
	})
}

// However slowly Stripe goes, one page takes no longer than RequestTimeout.
func TestRequestTimeout(t *testing.T) {
	virtual(t, func(t *testing.T, s stripe) {
		s.Handle("GET "+linesPath, withHeader("Retry-After", "60", stripetest.Error(429, "", "slow down")))
		start := time.Now()
		_, err := s.LineItems(t.Context(), session)
		if !errors.Is(err, stripeapi.ErrUnavailable) {
			t.Errorf("error: %v", err)
		}
		if d := time.Since(start); d > 2*time.Minute {
			t.Errorf("took %v", d)
		}
	})
}

func TestRateIsKept(t *testing.T) {
	const perSecond, requests = 20, 400
	counted := &answers{handlers: []http.Handler{oneItem}}
	virtual(t, func(t *testing.T, s stripe) {
		s.Handle("GET "+linesPath, counted)
		start := time.Now()
		var callers sync.WaitGroup
		for i := range requests {
			callers.Go(func() {
				if _, err := s.LineItems(t.Context(), stripeapi.Ref{ID: fmt.Sprintf("cs_%d", i), Livemode: i%2 == 0}); err != nil {
					t.Error(err)
				}
			})
		}
		callers.Wait()
		at := counted.since(start)
		if len(at) != requests {
			t.Fatalf("%d requests", len(at))
		}
		for i, first := range at {
			inSecond := 0
			for _, other := range at[i:] {
				if other < first+time.Second-time.Millisecond { // the spaces are rounded
					inSecond++
				}
			}
			if inSecond > perSecond {
				t.Fatalf("%d requests in the second after %v", inSecond, first)
			}
		}
		if took, want := at[requests-1], time.Duration(requests-1)*time.Second/perSecond; took > want+time.Second {
			t.Errorf("%d requests took %v instead of %v: the budget is not used", requests, took, want)
		}
	})
}

func TestBudgetLongerThanContext(t *testing.T) {
	virtual(t, func(t *testing.T, s stripe) {
		s.Handle("GET "+linesPath, oneItem)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if _, err := s.LineItems(ctx, session); err != nil {
			t.Fatal(err)
		}
		_, err := s.LineItems(ctx, session)
		if !errors.Is(err, stripeapi.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error: %v", err)
		}
	}, func(config *stripeapi.Config) { config.Rate = 0.1 })
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// An hour without Stripe leaves nothing behind.
func TestDownForAnHour(t *testing.T) {
	requests := 0
	var mu sync.Mutex
	virtual(t, func(t *testing.T, s stripe) {
		goroutines := runtime.NumGoroutine()
		start := time.Now()
		var callers sync.WaitGroup
		for i := range 64 {
			callers.Go(func() {
				for n := 0; time.Since(start) < time.Hour; n++ {
					_, err := s.LineItems(t.Context(), stripeapi.Ref{ID: fmt.Sprintf("cs_%d_%d", i, n)})
					if !errors.Is(err, stripeapi.ErrUnavailable) {
						t.Errorf("error: %v", err)
						return
					}
				}
			})
		}
		callers.Wait()
		if mu.Lock(); requests > 2*3730 || requests < 2*3500 {
			t.Errorf("%d requests in an hour", requests)
		}
		mu.Unlock()
		// Those that have just ended may be counted still; thousands of requests
		// that each left one behind would show.
		synctest.Wait()
		if now := runtime.NumGoroutine(); now > goroutines+10 {
			t.Errorf("%d goroutines after, %d before", now, goroutines)
		}
		if s.log.Len() > 1000 {
			t.Errorf("%d bytes of log: %.300s", s.log.Len(), s.log)
		}
	}, func(config *stripeapi.Config) {
		config.Rate = 2
		config.Transport = roundTrip(func(*http.Request) (*http.Response, error) {
			mu.Lock()
			defer mu.Unlock()
			requests++
			return nil, errors.New("connection refused")
		})
	})
}

func TestMissingPermission(t *testing.T) {
	const message = "The provided key '" + testKey + "' (rk_test_****Test1) does not have the required permissions for this endpoint on account 'acct_1'. Having the 'rak_checkout_session_read' permission would allow this request to continue."
	for _, status := range []int{403, 401} {
		virtual(t, func(t *testing.T, s stripe) {
			refused := &answers{handlers: []http.Handler{stripetest.Error(status, "", message)}}
			s.Handle("GET "+linesPath, refused)
			s.Handle("GET /v1/events", stripetest.Error(403, "", strings.ReplaceAll(message, "checkout_session", "event")))
			for range 3 {
				_, err := s.LineItems(t.Context(), session)
				if !errors.Is(err, stripeapi.ErrPermission) || errors.Is(err, stripeapi.ErrUnavailable) {
					t.Fatalf("error: %v", err)
				}
				for _, must := range []string{"rak_checkout_session_read", "req_stripetest", fmt.Sprint(status)} {
					if !strings.Contains(err.Error(), must) {
						t.Errorf("the error does not say %q: %v", must, err)
					}
				}
				for _, mustNot := range []string{"VerySecret", "****"} {
					if strings.Contains(err.Error(), mustNot) {
						t.Errorf("the error has the key: %v", err)
					}
				}
			}
			if len(refused.times) != 3 {
				t.Errorf("%d requests for 3 calls: a refusal is final", len(refused.times))
			}
			log := s.log.String()
			if strings.Count(log, "\n") != 1 || !strings.Contains(log, "permission=rak_checkout_session_read") || !strings.Contains(log, `\"Checkout Sessions\" to Read`) || !strings.Contains(log, "test mode") {
				t.Errorf("not logged once with what to do:\n%s", log)
			}
			for _, err := range s.Events(t.Context(), stripeapi.EventQuery{}) {
				if !errors.Is(err, stripeapi.ErrPermission) {
					t.Errorf("error: %v", err)
				}
			}
			if log := s.log.String(); strings.Count(log, "\n") != 2 || !strings.Contains(log, "rak_event_read") {
				t.Errorf("the second permission is not logged:\n%s", log)
			}
		})
	}
}

func TestFinalErrors(t *testing.T) {
	tests := []struct {
		name    string
		handler http.Handler
		kind    error
		logged  bool
	}{
		{"wrong key", stripetest.Error(401, "", "Invalid API Key provided: rk_test_****Test1"), stripeapi.ErrUnauthorized, true},
		{"expired key", stripetest.Error(401, "api_key_expired", "Expired API Key provided: "+testKey), stripeapi.ErrUnauthorized, true},
		{"account of another platform", stripetest.Error(403, "account_invalid", "The provided key 'rk_test_****Test1' does not have access to account 'acct_1'"), stripeapi.ErrPermission, true},
		{"missing", stripetest.Error(404, "resource_missing", "No such checkout.session: 'cs_1'"), stripeapi.ErrNotFound, false},
		{"unknown path", stripetest.Error(404, "", "Unrecognized request URL"), nil, false},
		{"bad request", stripetest.Error(400, "parameter_unknown", "Received unknown parameter: expand"), nil, false},
		{"not a list", text(200, `{}`), nil, false},
		{"a list without data", text(200, `{"object":"list","has_more":false,"data":null}`), nil, false},
		{"a list that may go on", text(200, `{"object":"list","data":[]}`), nil, false},
		{"more after an empty page", text(200, `{"object":"list","data":[],"has_more":true}`), nil, false},
		{"more after an object without id", text(200, `{"object":"list","data":[{"id":null}],"has_more":true}`), nil, false},
		{"an item that cannot be read", text(200, `{"object":"list","data":[{"id":"li_1","quantity":"2"}],"has_more":false}`), nil, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			virtual(t, func(t *testing.T, s stripe) {
				s.Handle("GET "+linesPath, test.handler)
				for range 2 {
					items, err := s.LineItems(t.Context(), session)
					if err == nil || items != nil {
						t.Fatalf("got %v, %v", items, err)
					}
					for _, kind := range []error{stripeapi.ErrNotFound, stripeapi.ErrPermission, stripeapi.ErrUnauthorized, stripeapi.ErrNoKey, stripeapi.ErrUnavailable} {
						if errors.Is(err, kind) != (kind == test.kind) {
							t.Errorf("errors.Is(%q, %q) is %t", err, kind, kind != test.kind)
						}
					}
					if strings.Contains(err.Error(), "Secret") || strings.Contains(err.Error(), "***") {
						t.Errorf("the error has the key: %v", err)
					}
				}
				if lines := strings.Count(s.log.String(), "\n"); lines != 1 && test.logged || lines != 0 && !test.logged {
					t.Errorf("%d lines are logged:\n%s", lines, s.log)
				}
			})
		})
	}
}

func TestListInACircle(t *testing.T) {
	circle := &answers{handlers: []http.Handler{text(200, `{"object":"list","data":[{"id":"evt_1"}],"has_more":true}`)}}
	virtual(t, func(t *testing.T, s stripe) {
		s.Handle("GET /v1/events", circle)
		var last error
		for _, err := range s.Events(t.Context(), stripeapi.EventQuery{}) {
			last = err
		}
		if last == nil || len(circle.times) != 2 {
			t.Errorf("%d requests, then %v", len(circle.times), last)
		}
	})
}

func TestEndlessList(t *testing.T) {
	var mu sync.Mutex
	n := 0
	virtual(t, func(t *testing.T, s stripe) {
		s.Handle("GET "+linesPath, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			n++
			fmt.Fprintf(w, `{"object":"list","has_more":true,"data":[%s]}`, sessionItem(n))
			mu.Unlock()
		}))
		if _, err := s.LineItems(t.Context(), session); err == nil || !strings.Contains(err.Error(), "more than 50 pages") {
			t.Errorf("error: %v", err)
		}
	})
	if n != 50 {
		t.Errorf("%d requests", n)
	}
}

// A redirect would send the key elsewhere.
func TestFollowsNoRedirect(t *testing.T) {
	virtual(t, func(t *testing.T, s stripe) {
		s.Handle("GET "+linesPath, http.RedirectHandler("/elsewhere", http.StatusFound))
		s.Handle("GET /elsewhere", http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			t.Error("the redirect was followed")
		}))
		if _, err := s.LineItems(t.Context(), session); !errors.Is(err, stripeapi.ErrUnavailable) {
			t.Errorf("error: %v", err)
		}
	})
}

func TestTooLarge(t *testing.T) {
	large := text(200, `{"id":"in_1","object":"invoice","filler":"`+strings.Repeat("x", 16<<20)+`"}`)
	virtual(t, func(t *testing.T, s stripe) {
		var all []string
		for i := range 10 {
			all = append(all, fmt.Sprintf(`{"id":"evt_%d","created":%d}`, i, 1000-i))
		}
		sizes := make(map[string]int)
		events := stripetest.Events(objects(all...))
		s.Handle("GET /v1/events", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			size := r.FormValue("limit")
			sizes[size]++ // one request at a time
			if len(size) > 1 {
				large.ServeHTTP(w, r)
				return
			}
			events.ServeHTTP(w, r)
		}))
		s.Handle("GET /v1/invoices/{id}", large)

		var got []string
		for event, err := range s.Events(t.Context(), stripeapi.EventQuery{}) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, idOf(event))
		}
		if len(got) != 10 || got[0] != "evt_0" || got[9] != "evt_9" {
			t.Errorf("events: %v", got)
		}
		if diff := cmp.Diff(map[string]int{"100": 1, "25": 1, "6": 2}, sizes); diff != "" {
			t.Errorf("requests by the size of the page (-want +got):\n%s", diff)
		}
		_, err := s.Invoice(t.Context(), stripeapi.Ref{ID: "in_1"})
		if err == nil || errors.Is(err, stripeapi.ErrUnavailable) || !strings.Contains(err.Error(), "larger than 16 MiB") {
			t.Errorf("a large object: %v", err)
		}
	})
}

func idOf(raw json.RawMessage) string {
	var object struct{ ID string }
	if err := json.Unmarshal(raw, &object); err != nil {
		return err.Error()
	}
	return object.ID
}

func TestCheckoutSessionByPaymentIntent(t *testing.T) {
	virtual(t, func(t *testing.T, s stripe) {
		const sale = `{"id":"cs_1","object":"checkout.session","field_of_tomorrow": {"b":1,"a":[ 2 ]}}`
		s.Handle("GET /v1/checkout/sessions", stripetest.List(func(r *http.Request) []json.RawMessage {
			if r.FormValue("payment_intent") == "pi_1" {
				return []json.RawMessage{json.RawMessage(sale)}
			}
			return nil
		}))
		raw, err := s.CheckoutSessionByPaymentIntent(t.Context(), stripeapi.Ref{ID: "pi_1"})
		if err != nil {
			t.Fatal(err)
		}
		var got, want any
		if json.Unmarshal(raw, &got) != nil || json.Unmarshal([]byte(sale), &want) != nil || !cmp.Equal(got, want) {
			t.Errorf("got %s", raw)
		}
		if _, err := s.CheckoutSessionByPaymentIntent(t.Context(), stripeapi.Ref{ID: "pi_2"}); !errors.Is(err, stripeapi.ErrNotFound) {
			t.Errorf("a PaymentIntent without a session: %v", err)
		}
	})
}

func TestObjects(t *testing.T) {
	virtual(t, func(t *testing.T, s stripe) {
		const invoice = "{\n  \"id\": \"in_1\",\n  \"object\": \"invoice\",\n  \"new\": 1.50\n}\n"
		s.Handle("GET /v1/invoices/in_1", text(200, invoice))
		s.Handle("GET /v1/invoices/in_2", text(200, `{"id":"in_2","object":"charge"}`))
		if raw, err := s.Invoice(t.Context(), stripeapi.Ref{ID: "in_1"}); err != nil || string(raw) != invoice {
			t.Errorf("got %q, %v", raw, err)
		}
		if raw, err := s.Invoice(t.Context(), stripeapi.Ref{ID: "in_2"}); err == nil {
			t.Errorf("an object of another type was taken: %s", raw)
		}
	})
}

func TestBadReferences(t *testing.T) {
	virtual(t, func(t *testing.T, s stripe) {
		for _, id := range []string{"", "cs_", "ch_1", "cs_1/../../../v1/customers", "cs_1?x=y", "cs_é", "in_" + strings.Repeat("x", 300)} {
			if _, err := s.LineItems(t.Context(), stripeapi.Ref{ID: id}); err == nil {
				t.Errorf("line items of %.40q", id)
			}
			if _, err := s.PaymentIntent(t.Context(), stripeapi.Ref{ID: id}); err == nil {
				t.Errorf("PaymentIntent %.40q", id)
			}
			if _, err := s.Invoice(t.Context(), stripeapi.Ref{ID: id}); err == nil {
				t.Errorf("Invoice %.40q", id)
			}
			if _, err := s.CheckoutSessionByPaymentIntent(t.Context(), stripeapi.Ref{ID: id}); err == nil {
				t.Errorf("session of %.40q", id)
			}
		}
		if _, err := s.LineItems(t.Context(), stripeapi.Ref{ID: "cs_1", Account: "acct_1\r\nX: y"}); err == nil {
			t.Error("an account with a line break")
		}
	})
}

func TestEvents(t *testing.T) {
	var all []string
	for i := range 250 {
		all = append(all, fmt.Sprintf(`{"id":"evt_%d","created":%d,"type":"type_%d"}`, i, 1000+i, i%2))
	}
	list := func(t *testing.T, s stripe, q stripeapi.EventQuery) (ids []string) {
		for event, err := range s.Events(t.Context(), q) {
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, idOf(event))
		}
		return ids
	}
	virtual(t, func(t *testing.T, s stripe) {
		s.Handle("GET /v1/events", stripetest.Events(objects(all...)))
		ids := list(t, s, stripeapi.EventQuery{})
		if len(ids) != 250 || ids[0] != "evt_249" || ids[249] != "evt_0" {
			t.Errorf("not all, from the newest on: %v", ids)
		}
		q := stripeapi.EventQuery{Since: time.Unix(1010, 500), Until: time.Unix(1016, 0), Types: []string{"type_0", "type_2"}}
		if diff := cmp.Diff([]string{"evt_14", "evt_12", "evt_10"}, list(t, s, q)); diff != "" {
			t.Errorf("of a time and a type (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]string{"evt_1", "evt_0"}, list(t, s, stripeapi.EventQuery{OlderThan: "evt_2"})); diff != "" {
			t.Errorf("older than one (-want +got):\n%s", diff)
		}
		for range s.Events(t.Context(), stripeapi.EventQuery{}) {
			break // must not go on
		}
		again := s.Events(t.Context(), stripeapi.EventQuery{Types: []string{"type_1"}})
		for range 2 { // a list can be read twice
			n := 0
			for range again {
				n++
			}
			if n != 125 {
				t.Errorf("%d events", n)
			}
		}
		for _, err := range s.Events(t.Context(), stripeapi.EventQuery{Types: slices.Repeat([]string{"x"}, 21)}) {
			if err == nil {
				t.Error("21 types were accepted")
			}
		}
	})
}

// Half a listing ends with an error, and goes on from where it was.
func TestEventsGoOn(t *testing.T) {
	var all []string
	for i := range 150 {
		all = append(all, fmt.Sprintf(`{"id":"evt_%d","created":%d}`, i, 1000-i))
	}
	events := stripetest.Events(objects(all...))
	down := text(500, "")
	virtual(t, func(t *testing.T, s stripe) {
		s.Handle("GET /v1/events", &answers{handlers: []http.Handler{events, down, down, down, down, down, events}})
		var ids []string
		var last error
		for event, err := range s.Events(t.Context(), stripeapi.EventQuery{}) {
			if last = err; err == nil {
				ids = append(ids, idOf(event))
			}
		}
		if len(ids) != 100 || !errors.Is(last, stripeapi.ErrUnavailable) {
			t.Fatalf("%d events, then %v", len(ids), last)
		}
		for event, err := range s.Events(t.Context(), stripeapi.EventQuery{OlderThan: ids[99]}) {
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, idOf(event))
		}
		slices.Sort(ids)
		if n := len(slices.Compact(ids)); n != 150 {
			t.Errorf("%d of 150 events", n)
		}
	})
}

func TestProductsAreCached(t *testing.T) {
	const item = `{"id":"il_1","object":"line_item","pricing":{"price_details":{"price":"price_1","product":"my box/1"}}}`
	virtual(t, func(t *testing.T, s stripe) {
		var mu sync.Mutex
		reads := make(map[string]int)
		s.Handle("GET /v1/invoices/{id}/lines", stripetest.List(objects(item)))
		s.Handle("GET /v1/products/{id}", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			reads[r.Header.Get("Stripe-Account")+" "+r.PathValue("id")]++
			mu.Unlock()
			fmt.Fprint(w, `{"id":"my box/1","object":"product","name":"Box","metadata":{"sku":"A1"}}`)
		}))
		s.Handle("GET /v1/prices/{id}", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			reads[r.Header.Get("Stripe-Account")+" "+r.PathValue("id")]++
			mu.Unlock()
			fmt.Fprint(w, `{"id":"price_1","object":"price","lookup_key":"box-l"}`)
		}))
		want := &ordergatev1.Product{Id: "my box/1", Name: "Box", Metadata: map[string]string{"sku": "A1"}}
		read := func(account string) {
			items, err := s.LineItems(t.Context(), stripeapi.Ref{ID: "in_1", Account: account})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, items[0].GetProduct(), protocmp.Transform()); diff != "" {
				t.Errorf("product (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(&ordergatev1.PriceDetails{Id: "price_1", LookupKey: "box-l"}, items[0].GetPriceDetails(), protocmp.Transform()); diff != "" {
				t.Errorf("price (-want +got):\n%s", diff)
			}
			items[0].Product.Name, items[0].PriceDetails.LookupKey = "the caller's own", "too"
		}
		read("")
		read("")
		read("acct_1")
		read("")
		if diff := cmp.Diff(map[string]int{" my box/1": 1, "acct_1 my box/1": 1, " price_1": 1, "acct_1 price_1": 1}, reads); diff != "" {
			t.Errorf("reads (-want +got):\n%s", diff)
		}
		<-time.After(11 * time.Minute) // virtual
		read("")
		if reads[" my box/1"] != 2 {
			t.Errorf("an old product was not read again: %v", reads)
		}
	})
}

func TestShippingRate(t *testing.T) {
	virtual(t, func(t *testing.T, s stripe) {
		reads := 0
		s.Handle("GET /v1/shipping_rates/shr_1", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			reads++
			if r.Header.Get("Stripe-Context") != "acct_1" || r.Header.Get("Stripe-Account") != "" {
				t.Errorf("headers %v, want the account as Stripe-Context", r.Header)
			}
			fmt.Fprint(w, `{"id":"shr_1","object":"shipping_rate","display_name":"Express","metadata":{"carrier":"DHL"},"tax_code":"txcd_92010001",
				"fixed_amount":{"amount":500,"currency":"eur"},"delivery_estimate":{"minimum":{"unit":"business_day","value":1},"maximum":{"unit":"day","value":3}}}`)
		}))
		s.Handle("GET /v1/shipping_rates/shr_gone", stripetest.Error(404, "resource_missing", "No such shipping rate"))
		s.Handle("GET /v1/shipping_rates/shr_secret", stripetest.Error(403, "", "Having the 'rak_shipping_rate_read' permission would allow this"))
		s.Handle("GET /v1/shipping_rates/shr_odd", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, `{"id":"shr_odd","object":"shipping_rate","display_name":7,"metadata":[],"delivery_estimate":"soon"}`)
		}))
		want := &ordergatev1.ShippingRate{
			Id: "shr_1", DisplayName: "Express", Metadata: map[string]string{"carrier": "DHL"}, TaxCode: "txcd_92010001",
			DeliveryEstimate: &ordergatev1.DeliveryEstimate{
				Minimum: &ordergatev1.DeliveryEstimateBound{Unit: "business_day", Value: 1},
				Maximum: &ordergatev1.DeliveryEstimateBound{Unit: "day", Value: 3},
			},
		}
		for range 2 {
			rate, err := s.ShippingRate(t.Context(), stripeapi.Ref{ID: "shr_1", Account: "acct_1", InContext: true})
			if diff := cmp.Diff(want, rate, protocmp.Transform()); err != nil || diff != "" {
				t.Errorf("%v, rate (-want +got):\n%s", err, diff)
			}
		}
		if reads != 1 {
			t.Errorf("%d requests for one rate, want 1", reads)
		}
		for _, id := range []string{"shr_gone", "shr_odd"} {
			rate, err := s.ShippingRate(t.Context(), stripeapi.Ref{ID: id})
			if diff := cmp.Diff(&ordergatev1.ShippingRate{Id: id}, rate, protocmp.Transform()); err != nil || diff != "" {
				t.Errorf("%v, rate (-want +got):\n%s", err, diff)
			}
		}
		if rate, err := s.ShippingRate(t.Context(), stripeapi.Ref{ID: "shr_secret"}); !errors.Is(err, stripeapi.ErrPermission) || rate != nil {
			t.Errorf("without the permission: %v, %v", rate, err)
		}
		if _, err := s.ShippingRate(t.Context(), stripeapi.Ref{ID: "../account"}); err == nil {
			t.Error("a path was taken for the id of a shipping rate")
		}
	})
}

func TestProductNotThere(t *testing.T) {
	const item = `{"id":"li_1","object":"item","price":{"id":"price_1","product":"%s"}}`
	virtual(t, func(t *testing.T, s stripe) {
		s.Handle("GET /v1/checkout/sessions/cs_gone/line_items", stripetest.List(objects(fmt.Sprintf(item, "prod_gone"))))
		s.Handle("GET /v1/checkout/sessions/cs_dots/line_items", stripetest.List(objects(fmt.Sprintf(item, ".."))))
		s.Handle("GET /v1/checkout/sessions/cs_secret/line_items", stripetest.List(objects(fmt.Sprintf(item, "prod_secret"))))
		gone := &answers{handlers: []http.Handler{stripetest.Error(404, "resource_missing", "No such product")}}
		s.Handle("GET /v1/products/prod_gone", gone)
		s.Handle("GET /v1/products/prod_secret", stripetest.Error(403, "", "Having the 'rak_product_read' permission would allow this"))
		for range 2 {
			for session, product := range map[string]string{"cs_gone": "prod_gone", "cs_dots": ".."} {
				items, err := s.LineItems(t.Context(), stripeapi.Ref{ID: session})
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(&ordergatev1.Product{Id: product}, items[0].GetProduct(), protocmp.Transform()); diff != "" {
					t.Errorf("product (-want +got):\n%s", diff)
				}
			}
		}
		if len(gone.times) != 1 {
			t.Errorf("a deleted product was asked for %d times", len(gone.times))
		}
		if items, err := s.LineItems(t.Context(), stripeapi.Ref{ID: "cs_secret"}); !errors.Is(err, stripeapi.ErrPermission) || items != nil {
			t.Errorf("without permission for products: %v, %v", items, err)
		}
	})
}

func TestNew(t *testing.T) {
	tests := []struct {
		name   string
		config stripeapi.Config
		want   []string // in the error; none means no error
	}{
		{"no keys", stripeapi.Config{}, nil},
		{"secret keys", stripeapi.Config{Keys: []string{"sk_test_Secret1", "sk_live_Secret1"}}, nil},
		{"publishable key", stripeapi.Config{Keys: []string{"pk_live_Secret1"}}, []string{"API key 1 of 1"}},
		{"key with a blank", stripeapi.Config{Keys: []string{"rk_live_Secret1 "}}, []string{"API key 1 of 1"}},
		{"two of a mode", stripeapi.Config{Keys: []string{"rk_test_Secret1", "sk_test_Secret2"}}, []string{"API key 2 of 2", "test mode"}},
		{"all at once", stripeapi.Config{Keys: []string{"Secret"}, Base: "api.stripe.com", Rate: -1}, []string{"API key 1", "https://HOST", "negative"}},
		{"password in the base", stripeapi.Config{Base: "https://user:Secret@api.stripe.com"}, []string{"more than https://HOST"}},
		{"live key in the clear", stripeapi.Config{Keys: []string{"rk_live_Secret1"}, Base: "http://proxy"}, []string{"not encrypted"}},
		{"test key in the clear", stripeapi.Config{Keys: []string{"rk_test_Secret1"}, Base: "http://stripe-mock:12111"}, nil},
		{"live key on loopback", stripeapi.Config{Keys: []string{"rk_live_Secret1"}, Base: "http://[::1]:12111"}, nil},
		{"a rate that is no number", stripeapi.Config{Rate: math.NaN()}, []string{"rate"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			client, err := stripeapi.New(test.config)
			if (err == nil) != (len(test.want) == 0) || (client == nil) != (err != nil) {
				t.Fatalf("client %t, error %v", client != nil, err)
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error does not say %q: %v", want, err)
				}
			}
			if err != nil && strings.Contains(err.Error(), "Secret") {
				t.Errorf("the error shows a key or password: %v", err)
			}
		})
	}
}

// Over a real network, against Stripe's own stand-in.
func TestStripeMock(t *testing.T) {
	client, err := stripeapi.New(stripeapi.Config{Keys: []string{testKey}, Base: stripetest.StripeMock(t)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()

	items, err := client.LineItems(ctx, session)
	if err != nil {
		t.Fatal(err)
	}
	if len(items) == 0 || items[0].GetId() == "" || items[0].GetPrice() == "" || items[0].GetProduct().GetName() == "" || items[0].AmountTotal == nil {
		t.Errorf("line items: %v", items)
	}
	if items, err = client.LineItems(ctx, stripeapi.Ref{ID: "in_1"}); err != nil || len(items) == 0 || items[0].AmountSubtotal == nil {
		t.Errorf("invoice lines: %v, %v", items, err)
	}
	if raw, err := client.CheckoutSessionByPaymentIntent(ctx, stripeapi.Ref{ID: "pi_1"}); err != nil || idOf(raw) == "" {
		t.Errorf("session: %s, %v", raw, err)
	}
	if raw, err := client.PaymentIntent(ctx, stripeapi.Ref{ID: "pi_1"}); err != nil || idOf(raw) != "pi_1" {
		t.Errorf("PaymentIntent: %s, %v", raw, err)
	}
	if raw, err := client.Invoice(ctx, stripeapi.Ref{ID: "in_1", Account: "acct_1"}); err != nil || idOf(raw) != "in_1" {
		t.Errorf("invoice: %s, %v", raw, err)
	}
	n := 0
	for event, err := range client.Events(ctx, stripeapi.EventQuery{Since: time.Now().Add(-time.Hour), Types: []string{"invoice.paid", "charge.refunded"}}) {
		if n++; err != nil || idOf(event) == "" {
			t.Errorf("event: %s, %v", event, err)
		}
	}
	if n == 0 {
		t.Error("no event")
	}
}
