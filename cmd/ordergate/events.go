package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"

	"google.golang.org/grpc"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// maxDetail is how much of what is wrong with an event fits a table, in
// characters.
const maxDetail = 100

type eventsCommands struct {
	List      eventsListCommand      `cmd:"" help:"List stored events, the newest first, and what became of them."`
	Get       eventsGetCommand       `cmd:"" help:"Show one event, what became of it, and its body as Stripe sent it."`
	Reprocess eventsReprocessCommand `cmd:"" help:"Convert events again: parked ones, or those of orders that a mended conversion corrects."`
	Dismiss   eventsDismissCommand   `cmd:"" help:"End parked events that concern no order: they become IGNORED."`
}

type eventsListCommand struct {
	clientFlags `embed:""`
	Parked      bool     `name:"parked" help:"Only events that are parked: UNMATCHED or FAILED."`
	Outcome     []string `name:"outcome" placeholder:"NAME" help:"Only events of which this became: CONVERTED, UNCHANGED, WAITING, IGNORED, UNMATCHED, FAILED, PENDING, ERASED."`
	Type        []string `name:"type" placeholder:"TYPE" help:"Only events of this type, such as charge.refunded."`
	Since       moment   `name:"since" placeholder:"TIME" help:"Only events stored at or after this time (2026-01-31T08:00:00Z, or 48h for as long ago)."`
	Until       moment   `name:"until" placeholder:"TIME" help:"Only events stored before this time."`
	Limit       int      `name:"limit" default:"50" help:"How many at most; 0 for all."`
}

// Help is the longer text of `ordergate events list --help`.
func (eventsListCommand) Help() string {
	return `Examples:
  ordergate events list --parked
  ordergate events list --type charge.refunded --since 48h --json | jq -r .id`
}

func (l *eventsListCommand) Run(ctx context.Context, c console) error {
	outcomes, err := enumValues[ordergatev1.EventOutcome]("outcome", l.Outcome)
	if err != nil {
		return err
	}
	filter := &ordergatev1.EventFilter{Outcomes: outcomes, Types: l.Type, StartTime: l.Since.proto(), EndTime: l.Until.proto(), ParkedOnly: l.Parked}
	table := newColumns(c.stdout)
	if !l.JSON {
		table.row("STORED", "EVENT", "TYPE", "OUTCOME", "MODE", "ORDER")
	}
	print := func(event *ordergatev1.StripeEvent) error {
		if l.JSON {
			return printJSON(c.stdout, event)
		}
		about := event.GetOrderId()
		if event.GetDetail() != "" {
			about = brief(event.GetDetail())
		}
		table.row(localTime(event.GetStoreTime()), event.GetId(), event.GetType(), enumName(event.GetOutcome()), livemodeName(event.GetLivemode()), about)
		return nil
	}
	err = l.call(func(conn *grpc.ClientConn) error {
		client := ordergatev1.NewEventServiceClient(conn)
		return eachListed(l.Limit, c.stderr, print, func(size int32, token string) ([]*ordergatev1.StripeEvent, string, error) {
			page, err := client.ListEvents(ctx, &ordergatev1.ListEventsRequest{PageSize: size, PageToken: token, Filter: filter})
			return page.GetEvents(), page.GetNextPageToken(), err
		})
	})
	if err != nil {
		return err
	}
	return table.Flush()
}

// brief is the first line of a text, and not much of it.
func brief(text string) string {
	line, rest, _ := strings.Cut(text, "\n")
	if utf8.RuneCountInString(line) > maxDetail {
		return string([]rune(line)[:maxDetail]) + " …"
	}
	if rest != "" {
		line += " …"
	}
	return line
}

type eventsGetCommand struct {
	clientFlags `embed:""`
	Event       string `arg:"" help:"The event's id."`
	Raw         bool   `name:"raw" help:"Print nothing but the body, byte for byte as Stripe sent it."`
}

// Help is the longer text of `ordergate events get --help`.
func (eventsGetCommand) Help() string {
	return `Examples:
  ordergate events get evt_1A
  ordergate events get evt_1A --raw > event.json`
}

func (g *eventsGetCommand) Run(ctx context.Context, c console) error {
	if g.Raw && g.JSON {
		return errors.New("--raw and --json can't be used together: --json has the body in raw")
	}
	return g.call(func(conn *grpc.ClientConn) error {
		response, err := ordergatev1.NewEventServiceClient(conn).GetEvent(ctx, &ordergatev1.GetEventRequest{EventId: g.Event})
		if err != nil {
			return err
		}
		body := response.GetRawBytes()
		if len(body) == 0 {
			body = []byte(response.GetRaw())
		}
		switch {
		case g.JSON:
			return printJSON(c.stdout, response)
		case g.Raw:
			_, err := c.stdout.Write(body)
			return err
		}
		return showEvent(c.stdout, response.GetEvent(), body)
	})
}

func showEvent(out io.Writer, event *ordergatev1.StripeEvent, body []byte) error {
	s := newSheet(out)
	s.field("Event", event.GetId())
	s.field("Type", event.GetType())
	s.field("API version", event.GetApiVersion())
	s.field("Account", event.GetAccount())
	s.field("Mode", livemodeName(event.GetLivemode()))
	s.field("Outcome", enumName(event.GetOutcome()))
	s.field("Because", event.GetDetail())
	s.field("Order", event.GetOrderId())
	s.field("Stored", localTime(event.GetStoreTime()))
	if event.GetSequence() > 0 {
		s.field("Sequence", strconv.FormatInt(event.GetSequence(), 10))
	}
	s.field("Received by", event.GetReceivedBy())
	if err := s.Flush(); err != nil {
		return err
	}
	var indented bytes.Buffer
	if json.Indent(&indented, body, "", "  ") != nil {
		indented = *bytes.NewBuffer(body) // it is shown as it is
	}
	_, err := fmt.Fprintf(out, "\n%s\n", strings.Map(plainTextRune, strings.TrimSpace(indented.String())))
	return err
}

// plainTextRune is plainRune for text of several lines.
func plainTextRune(r rune) rune {
	if r == '\n' {
		return r
	}
	return plainRune(r)
}

type eventsReprocessCommand struct {
	clientFlags `embed:""`
	Events      []string `arg:"" name:"event" optional:"" help:"The ids of the events."`
	Parked      bool     `name:"parked" help:"All parked events."`
	Since       moment   `name:"since" placeholder:"TIME" help:"All events stored at or after this time (2026-01-31T08:00:00Z, or 48h for as long ago)."`
	Until       moment   `name:"until" placeholder:"TIME" help:"With --since: only events stored before this time."`
}

// Help is the longer text of `ordergate events reprocess --help`.
func (eventsReprocessCommand) Help() string {
	return `A parked event is applied if it can be now; the order of a converted one is made anew of all its events. An order that comes out otherwise gets a new revision, which subscribers see; the others get nothing. It may be stopped and run again.

Examples:
  ordergate events reprocess evt_1A evt_1B
  ordergate events reprocess --parked
  ordergate events reprocess --since 2026-01-31T08:00:00Z --until 2026-02-01T00:00:00Z`
}

func (r *eventsReprocessCommand) Run(ctx context.Context, c console) error {
	ways := 0
	for _, used := range []bool{len(r.Events) > 0, r.Parked, !r.Since.IsZero()} {
		if used {
			ways++
		}
	}
	if ways != 1 {
		return errors.New("say which events to reprocess: either their ids, or --parked, or --since TIME")
	}
	if r.Since.IsZero() && !r.Until.IsZero() {
		return errors.New("--until goes with --since only")
	}
	return r.call(func(conn *grpc.ClientConn) error {
		stream, err := ordergatev1.NewEventServiceClient(conn).ReprocessEvents(ctx, &ordergatev1.ReprocessEventsRequest{
			EventIds: r.Events, StartTime: r.Since.proto(), EndTime: r.Until.proto(), ParkedOnly: r.Parked,
		})
		if err != nil {
			return err
		}
		return eachReceived(stream, func(response *ordergatev1.ReprocessEventsResponse) error {
			if r.JSON {
				return printJSON(c.stdout, response)
			}
			return printReprocessed(c.stdout, response)
		})
	})
}

type eventsDismissCommand struct {
	clientFlags `embed:""`
	Events      []string `arg:"" name:"event" help:"The ids of the parked events."`
	Reason      string   `name:"reason" required:"" help:"The reason, which is kept with the events."`
}

// Help is the longer text of `ordergate events dismiss --help`.
func (eventsDismissCommand) Help() string {
	return `A dismissed event is not applied if its order appears later; "ordergate events reprocess" still takes it. Either all of the events are dismissed or none.

Example:
  ordergate events dismiss evt_1A evt_1B --reason "terminal payments"`
}

func (d *eventsDismissCommand) Run(ctx context.Context, c console) error {
	return d.call(func(conn *grpc.ClientConn) error {
		response, err := ordergatev1.NewEventServiceClient(conn).DismissEvents(ctx, &ordergatev1.DismissEventsRequest{EventIds: d.Events, Reason: d.Reason})
		if err != nil {
			return err
		}
		if d.JSON {
			return printJSON(c.stdout, response)
		}
		for _, event := range response.GetEvents() {
			if _, err := fmt.Fprintf(c.stdout, "%s  %s  %s: %s\n", event.GetId(), plain(event.GetType()), enumName(event.GetOutcome()), plain(brief(event.GetDetail()))); err != nil {
				return err
			}
		}
		return nil
	})
}

// eachReceived hands each message of a stream to handle, to the stream's end.
func eachReceived[T any](stream grpc.ServerStreamingClient[T], handle func(*T) error) error {
	for {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := handle(message); err != nil {
			return err
		}
	}
}

// printReprocessed writes what became of an event, and at the end the numbers.
func printReprocessed(out io.Writer, response *ordergatev1.ReprocessEventsResponse) error {
	if r := response.GetEvent(); r != nil {
		event := r.GetEvent()
		what := enumName(event.GetOutcome())
		if event.GetDetail() != "" {
			what += ": " + brief(event.GetDetail())
		}
		if r.GetOrder() != nil {
			what = "changed " + revision(r.GetOrder()) + ": " + directive(r.GetOrder())
		}
		if r.GetProblem() != "" {
			what = "could not be reprocessed: " + brief(r.GetProblem())
		}
		if _, err := fmt.Fprintf(out, "%s  %s  %s\n", event.GetId(), plain(event.GetType()), plain(what)); err != nil {
			return err
		}
	}
	if !response.GetDone() {
		return nil
	}
	_, err := fmt.Fprintf(out, "events looked at: %d, orders changed: %d, events still parked: %d, not reprocessed: %d\n",
		response.GetExamined(), response.GetChanged(), response.GetStillParked(), response.GetFailed())
	return err
}
