package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/ordergate/ordergate/internal/config"
	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/telemetry"
)

type migrateCommand struct {
	Limits config.Limits `embed:""`
	NATS   config.NATS   `embed:""`
	Apply  bool          `name:"apply" help:"Do it. Without this, nothing is changed."`
	JSON   bool          `name:"json" help:"Print one JSON object."`
}

// Help is the longer text of ordergate migrate.
func (migrateCommand) Help() string {
	return `Several gateways share what is in a NATS cluster, so none of them changes how it is set up: one that is told otherwise does not start, and says what differs. This command says what there is to change for a gateway with these flags, and does it with --apply. Give it the flags and the environment of serve.

It makes what is missing, and changes what can be changed in place: ages, bounds, how many servers keep each event, and what somebody set by hand that loses events. What would remove events is refused, and then nothing is done. Gateways may run meanwhile; start them anew with the new settings. What more servers are to keep, NATS copies to them in the background: ` + "`nats stream info INBOX`" + ` says how far it is.

A data directory needs none of this: serve brings it to its settings.

Example, from one server to three:
  ordergate migrate --nats-url nats://nats-1:4222,nats://nats-2:4222,nats://nats-3:4222 --replicas 3
  ordergate migrate --nats-url nats://nats-1:4222,nats://nats-2:4222,nats://nats-3:4222 --replicas 3 --apply`
}

func (m *migrateCommand) Run(ctx context.Context, c console) error {
	if m.NATS.Cluster() == nil {
		return errors.New("migrate is for events and orders in a NATS cluster: give --nats-url (ORDERGATE_NATS_URL); what is in a data directory is brought to its settings by serve")
	}
	if err := errors.Join(m.Limits.Check(), m.NATS.Check()); err != nil {
		return err
	}
	logger := telemetry.NewLogger(c.stderr, "auto", "warn")
	changes, err := eventlog.Migrate(ctx, clusterConfig(m.Limits, m.NATS, logger), m.Apply)
	if err != nil {
		return stopped(ctx, err)
	}
	refused := 0
	for _, change := range changes {
		if change.Refused != "" {
			refused++
		}
	}
	if err := m.print(c.stdout, changes, refused); err != nil {
		return err
	}
	if refused > 0 {
		return fmt.Errorf("nothing was changed: %d of %d changes cannot be made in place", refused, len(changes))
	}
	return nil
}

func (m *migrateCommand) print(out io.Writer, changes []eventlog.Change, refused int) error {
	applied := m.Apply && refused == 0
	if m.JSON {
		return json.NewEncoder(out).Encode(struct {
			Applied bool              `json:"applied"`
			Changes []eventlog.Change `json:"changes"`
		}{applied, append([]eventlog.Change{}, changes...)})
	}
	for _, change := range changes {
		name := change.Stream
		line := func(text string) {
			fmt.Fprintf(out, "%-16s %s\n", name, text)
			name = ""
		}
		if change.New {
			line("new")
		}
		for _, difference := range change.Differences {
			line(difference)
		}
		if change.Refused != "" {
			line("refused: " + change.Refused)
		}
	}
	switch {
	case len(changes) == 0:
		fmt.Fprintln(out, "nothing to change")
	case applied:
		fmt.Fprintf(out, "done: %d streams were made or changed\n", len(changes))
	case refused == 0:
		fmt.Fprintln(out, "nothing was changed: run it again with --apply")
	}
	return nil
}
