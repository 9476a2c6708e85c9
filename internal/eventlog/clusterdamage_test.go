package eventlog

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/ordergate/ordergate/internal/natscluster"
)

// A node whose files were damaged while it was stopped, and which then leads the streams, alters no
// event, and loses none that the other nodes have.
func TestDamagedNodeLeads(t *testing.T) {
	natscluster.Patiently(t)
	for name, damage := range map[string]func(t *testing.T, file string){
		"bit flip": func(t *testing.T, file string) {
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			content[len(content)/2] ^= 0x10
			if err := os.WriteFile(file, content, 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"truncation": func(t *testing.T, file string) {
			info, err := os.Stat(file)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(file, info.Size()/2); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			cluster := natscluster.New(t, 3)
			l := openLog(t, sharedConfig(t, cluster))
			const events = 60
			body := func(i int) string { return fmt.Sprintf(`{"id":"evt_%d","n":%d}`, i, i) }
			for i := range events {
				event := RawEvent{ID: fmt.Sprintf("evt_%d", i), Body: []byte(body(i))}
				eventually(t, "an event", func(ctx context.Context) error {
					_, err := l.AppendInbox(ctx, event)
					return err
				})
			}
			js := cluster.JetStream(t)
			leader := func() int {
				stream, err := js.Stream(deadline(t), inboxStream)
				if err != nil {
					t.Fatal(err)
				}
				return cluster.Number(stream.CachedInfo().Cluster.Leader)
			}
			damaged := leader()%cluster.Nodes() + 1
			var file string
			eventually(t, "the node has written the events", func(context.Context) error {
				files, err := filepath.Glob(filepath.Join(cluster.StoreDir(damaged), "jetstream", "*", "streams", inboxStream, "msgs", "*.blk"))
				if err != nil || len(files) == 0 {
					return fmt.Errorf("%v: %w", files, os.ErrNotExist)
				}
				file = files[0]
				info, err := os.Stat(file)
				if err == nil && info.Size() < events*40 {
					return fmt.Errorf("%s has %d bytes", file, info.Size())
				}
				return err
			})
			if err := cluster.Kill(damaged); err != nil {
				t.Fatal(err)
			}
			damage(t, file)
			if err := cluster.Restart(damaged); err != nil {
				t.Fatal(err)
			}
			if err := cluster.AwaitCurrent(deadline(t)); err != nil {
				t.Fatal(err)
			}
			preferred, err := json.Marshal(server.JSApiLeaderStepdownRequest{Placement: &server.Placement{Preferred: fmt.Sprintf("n%d", damaged)}})
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, "the damaged node leads", func(ctx context.Context) error {
				if leader() == damaged {
					return nil
				}
				if _, err := js.Conn().RequestWithContext(ctx, fmt.Sprintf(server.JSApiStreamLeaderStepDownT, inboxStream), preferred); err != nil {
					return err
				}
				select {
				case <-ctx.Done():
				case <-time.After(500 * time.Millisecond): // for an election
				}
				if now := leader(); now != damaged {
					return fmt.Errorf("node %d leads", now)
				}
				return nil
			})
			for i := range events {
				id := fmt.Sprintf("evt_%d", i)
				eventually(t, id, func(ctx context.Context) error {
					stored, err := l.InboxEvent(ctx, id)
					if err == nil && string(stored.Body) != body(i) {
						t.Errorf("%s is %q", id, stored.Body)
					}
					return err
				})
			}
		})
	}
}
