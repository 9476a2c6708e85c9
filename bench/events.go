package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/stripe/stripe-go/v76/webhook"

	"github.com/ordergate/ordergate/internal/sample"
)

const (
	secret = "whsec_0123456789abcdef0123456789abcdef"
	path   = "/api/webhook"
	// Events are of 2 to 8 kB: a paid Checkout Session, with metadata of the shop's.
	maxMetadata = 4500
)

// event is a signed event, ready to be sent.
type event struct {
	id, order string
	request   []byte // as it goes over the wire
}

// maker makes distinct events, quickly: of one sample, with other ids.
type maker struct {
	template  string
	id, order string
	n         int
	random    *rand.Rand
}

func newMaker() (*maker, error) {
	story, err := sample.Story(sample.Completed, time.Now())
	if err != nil {
		return nil, err
	}
	e := story[0]
	return &maker{template: string(e.Body), id: e.ID, order: e.OrderID, random: rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1))}, nil
}

// body returns the next event's id, its order's, and its body.
func (m *maker) body() (id, order string, body []byte) {
	m.n++
	run := fmt.Sprintf("%08x%06d", m.random.Uint32(), m.n)
	id, order = "evt_1Bench"+run, "cs_test_a1Bench"+run
	text := strings.NewReplacer(m.id, id, m.order[len("cs_test_a1"):], "Bench"+run,
		`"warehouse": "berlin-1"`, `"warehouse": "berlin-1", "note": "`+strings.Repeat("x", m.random.IntN(maxMetadata))+`"`).Replace(m.template)
	return id, order, []byte(text)
}

// events makes n signed events. They are good for the tolerance of signatures.
func (m *maker) events(n int) []event { return m.signed(n, secret) }

// signed makes n events that are signed with another secret; with none when it is
// empty.
func (m *maker) signed(n int, secret string) []event {
	made := make([]event, n)
	for i := range made {
		id, order, body := m.body()
		made[i] = event{id, order, request(body, secret)}
	}
	return made
}

// request is a POST as Stripe sends it.
func request(body []byte, secret string) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "POST %s HTTP/1.1\r\nHost: localhost\r\nUser-Agent: Stripe/1.0 (+https://stripe.com/docs/webhooks)\r\nAccept: */*\r\n"+
		"Content-Type: application/json; charset=utf-8\r\nContent-Length: %d\r\n", path, len(body))
	if secret != "" {
		signed := webhook.GenerateTestSignedPayload(&webhook.UnsignedPayload{Payload: body, Secret: secret, Timestamp: time.Now()})
		fmt.Fprintf(&b, "Stripe-Signature: %s\r\n", signed.Header)
	}
	b.WriteString("\r\n")
	b.Write(body)
	return b.Bytes()
}
