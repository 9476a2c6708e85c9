package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/stripe/stripe-go/v76/webhook"

	"github.com/ordergate/ordergate/internal/sample"
	"github.com/ordergate/ordergate/internal/stripehook"
)

const triggerTimeout = 30 * time.Second

type triggerCommand struct {
	Type   string `arg:"" optional:"" default:"checkout.session.completed" help:"The type of the event that ends the story (default: ${default})."`
	URL    string `name:"url" env:"ORDERGATE_URL" default:"http://localhost:3000/api/webhook" help:"The gateway's webhook endpoint."`
	Secret string `name:"stripe-webhook-secret" env:"STRIPE_WEBHOOK_SECRET" placeholder:"whsec_…" help:"The secret to sign with: one of the gateway's own."`
}

// Help is the longer text of `ordergate trigger --help`.
func (triggerCommand) Help() string {
	return `Makes up a new order and sends the events that lead to TYPE, signed as Stripe would sign them:

  checkout.session.completed                an order that is paid at once
  checkout.session.async_payment_succeeded  one that is placed, then paid
  checkout.session.async_payment_failed     one that is placed, then its payment fails
  checkout.session.expired                  one that is placed, then expires

Example, with the secret that "ordergate dev" prints:
  STRIPE_WEBHOOK_SECRET=whsec_… ordergate trigger checkout.session.async_payment_succeeded`
}

func (t *triggerCommand) Run(ctx context.Context, c console) error {
	secrets, err := stripehook.ParseSecrets(t.Secret)
	if err != nil {
		return fmt.Errorf("%w\nset STRIPE_WEBHOOK_SECRET to the secret that the gateway was started with; ordergate dev prints it", err)
	}
	story, err := sample.Story(t.Type, time.Now())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, triggerTimeout)
	defer cancel()
	for _, event := range story {
		if err := post(ctx, t.URL, secrets[0], event.Body); err != nil {
			return fmt.Errorf("send %s: %w", event.Type, err)
		}
		fmt.Fprintf(c.stdout, "%s %s order %s: received\n", event.Type, event.ID, event.OrderID)
	}
	return nil
}

// post signs and sends one event.
func post(ctx context.Context, url string, secret stripehook.Secret, body []byte) error {
	signed := webhook.GenerateTestSignedPayload(&webhook.UnsignedPayload{Payload: body, Secret: secret.Reveal(), Timestamp: time.Now()})
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json; charset=utf-8")
	request.Header.Set("Stripe-Signature", signed.Header)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return fmt.Errorf("%w: is the gateway running, and is --url right?", err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(response.Body, 4<<10))
	if err != nil {
		return err
	}
	if response.StatusCode == http.StatusOK {
		return nil
	}
	problem := fmt.Errorf("the gateway answered %s: %s", response.Status, strings.TrimSpace(string(answer)))
	if response.StatusCode == http.StatusBadRequest {
		problem = errors.Join(problem, errors.New("is STRIPE_WEBHOOK_SECRET the one that the gateway was started with? The gateway's log says what was wrong"))
	}
	return problem
}
