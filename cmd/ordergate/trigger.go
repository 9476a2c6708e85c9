package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/stripe/stripe-go/v76/webhook"

	"github.com/ordergate/ordergate/internal/sample"
	"github.com/ordergate/ordergate/internal/stripehook"
)

// triggerTimeout bounds the sending of one event.
const triggerTimeout = 30 * time.Second

type triggerCommand struct {
	Type     string        `arg:"" optional:"" help:"The type of the last event (default: checkout.session.completed)."`
	Scenario string        `name:"scenario" xor:"what" placeholder:"NAME" help:"Send the events of this scenario instead."`
	List     bool          `name:"list" xor:"what" help:"Print all types and scenarios, and send nothing."`
	Pause    time.Duration `name:"pause" placeholder:"DURATION" help:"How long to wait between two events, such as 2s (default: not at all)."`
	URL      string        `name:"url" env:"ORDERGATE_URL" default:"http://localhost:3000/api/webhook" help:"The gateway's webhook endpoint."`
	Secret   string        `name:"stripe-webhook-secret" env:"STRIPE_WEBHOOK_SECRET" placeholder:"whsec_…" help:"The secret to sign with: one of the gateway's own."`
}

// Help is the longer text of `ordergate trigger --help`.
func (triggerCommand) Help() string {
	return `Makes up a new order and sends the events that lead to TYPE, or those of a scenario, signed as Stripe would sign them. --list prints what there is.

Examples, with the secret that "ordergate dev" prints in STRIPE_WEBHOOK_SECRET:
  ordergate trigger                     an order that is paid at once
  ordergate trigger charge.refunded     one that is paid, then refunded
  ordergate trigger --scenario partly-refunded-disputed-won --pause 2s
  ordergate trigger --list`
}

func (t *triggerCommand) Run(ctx context.Context, c console) error {
	switch {
	case t.Type != "" && t.Scenario != "":
		return fmt.Errorf("%s and --scenario can't be used together: each is a story of its own", t.Type)
	case t.Type != "" && t.List:
		return fmt.Errorf("%s and --list can't be used together: --list sends nothing", t.Type)
	case t.List:
		return listSamples(c.stdout)
	}
	secrets, err := stripehook.ParseSecrets(t.Secret)
	if err != nil {
		err = fmt.Errorf("%w\nset STRIPE_WEBHOOK_SECRET to the secret that the gateway was started with; ordergate dev prints it", err)
	}
	story, unknown := t.story()
	if unknown != nil {
		unknown = fmt.Errorf("%w\nordergate trigger --list says what happens in each", unknown)
	}
	if err := errors.Join(unknown, err); err != nil {
		return err
	}
	for i, event := range story {
		if i > 0 {
			select {
			case <-ctx.Done():
				return fmt.Errorf("stopped before %s, event %d of %d", event.Type, i+1, len(story))
			case <-time.After(t.Pause):
			}
		}
		if err := post(ctx, t.URL, secrets[0], event.Body); err != nil {
			return fmt.Errorf("send %s: %w", event.Type, err)
		}
		fmt.Fprintf(c.stdout, "%s %s order %s: received\n", event.Type, event.ID, event.OrderID)
	}
	return nil
}

func (t *triggerCommand) story() ([]sample.Event, error) {
	switch {
	case t.Scenario != "":
		return sample.Scenario(t.Scenario, time.Now())
	case t.Type != "":
		return sample.Story(t.Type, time.Now())
	default:
		return sample.Story(sample.Completed, time.Now())
	}
}

// listSamples prints the types, each with what happens in the scenario that
// stands for it, and all scenarios.
func listSamples(out io.Writer) error {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "TYPE\tWHAT HAPPENS")
	listed := map[string]bool{}
	for _, s := range sample.Scenarios() {
		if !listed[s.Type] {
			fmt.Fprintf(table, "%s\t%s\n", s.Type, s.About)
			listed[s.Type] = true
		}
	}
	fmt.Fprintln(table, "\nSCENARIO\tWHAT HAPPENS")
	for _, s := range sample.Scenarios() {
		fmt.Fprintf(table, "%s\t%s\n", s.Name, s.About)
	}
	return table.Flush()
}

// post signs and sends one event.
func post(ctx context.Context, url string, secret stripehook.Secret, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, triggerTimeout)
	defer cancel()
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
