package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"google.golang.org/grpc"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/telemetry"
)

type backfillCommand struct {
	clientFlags `embed:""`
	Since       moment `name:"since" required:"" placeholder:"TIME" help:"Ask for events that happened at or after this time (2026-01-31T08:00:00Z, or 48h for as long ago). Stripe lists events for 30 days."`
}

// Help is the longer text of `ordergate backfill --help`.
func (backfillCommand) Help() string {
	return `The gateway does this by itself after it was down. Events that are stored already are left alone; the others are treated as if Stripe had sent them now. The gateway needs a Stripe API key. It may be stopped and run again: what was recovered stays.

Examples:
  ordergate backfill --since 48h
  ordergate backfill --since 2026-01-31T08:00:00Z --json`
}

func (b *backfillCommand) Run(ctx context.Context, c console) error {
	progress := &progressLine{out: c.stderr, terminal: telemetry.IsTerminal(c.stderr)}
	err := b.call(func(conn *grpc.ClientConn) error {
		stream, err := ordergatev1.NewEventServiceClient(conn).Backfill(ctx, &ordergatev1.BackfillRequest{Since: b.Since.proto()})
		if err != nil {
			return err
		}
		return eachReceived(stream, func(response *ordergatev1.BackfillResponse) error {
			switch {
			case b.JSON:
				return printJSON(c.stdout, response)
			case response.GetDone():
				progress.clear()
				return printGapReport(c.stdout, response)
			}
			progress.showBackfill(response)
			return nil
		})
	})
	if err != nil {
		progress.clear()
	}
	if errors.Is(err, errStopped) {
		return fmt.Errorf("%w: what was recovered until now stays", err)
	}
	return err
}

func printGapReport(out io.Writer, report *ordergatev1.BackfillResponse) error {
	s := newSheet(out)
	s.field("Gap report", localTime(report.GetSince())+" to "+localTime(report.GetUntil()))
	s.field("Listed at Stripe", fmt.Sprint(report.GetListed()))
	s.field("Missing here", fmt.Sprint(report.GetMissing()))
	s.field("Recovered", fmt.Sprint(report.GetRecovered()))
	if unread := report.GetMissing() - report.GetRecovered(); unread > 0 {
		s.field("Not recovered", fmt.Sprintf("%d, which could not be read: the gateway's log names them", unread))
	}
	return s.Flush()
}

// barWidth is how wide the bar is, in characters.
const barWidth = 20

// progressLine shows how far something has come: as a bar that is drawn over
// itself in a terminal, elsewhere as a line for each tenth.
type progressLine struct {
	out      io.Writer
	terminal bool
	tenths   int64 // shown until now, where it is not a terminal
}

// show shows that a part of a total is done.
func (p *progressLine) show(part, total int64, about string) {
	percent := min(100, part*100/max(1, total))
	text := fmt.Sprintf("%3d %%  %s", percent, about)
	if p.terminal {
		done := int(percent) * barWidth / 100
		fmt.Fprintf(p.out, "\r\x1b[K[%s%s] %s", strings.Repeat("#", done), strings.Repeat("-", barWidth-done), text)
		return
	}
	if percent/10 > p.tenths {
		p.tenths = percent / 10
		fmt.Fprintln(p.out, text)
	}
}

func (p *progressLine) showBackfill(r *ordergatev1.BackfillResponse) {
	since, until, reached := r.GetSince().GetSeconds(), r.GetUntil().GetSeconds(), r.GetReached().GetSeconds()
	p.show(reached-since, until-since, fmt.Sprintf("up to %s  listed %d, missing %d, recovered %d",
		localTime(r.GetReached()), r.GetListed(), r.GetMissing(), r.GetRecovered()))
}

// clear takes the bar away.
func (p *progressLine) clear() {
	if p.terminal {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
}
