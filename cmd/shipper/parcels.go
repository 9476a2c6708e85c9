package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/gofrs/flock"
	"google.golang.org/protobuf/encoding/protojson"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/client"
)

// parcels is a folder with a file for each order, ORDER.json.
type parcels struct {
	dir        string
	lock       *flock.Flock
	testOrders bool
	log        *slog.Logger
}

func openParcels(dir string, testOrders bool, log *slog.Logger) (*parcels, error) {
	// The files hold names and addresses: they are the owner's alone.
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	// Consume never runs two handlers of one order at once, but a worker that has
	// lost its lease may still run beside another one. So that the two cannot
	// write the same file, one process at a time has the folder. A database would
	// compare and set the revision instead, and any number could work on it.
	lock := flock.New(filepath.Join(dir, ".lock"))
	if locked, err := lock.TryLock(); err != nil {
		return nil, err
	} else if !locked {
		return nil, fmt.Errorf("another shipper works on %s: give this one another --out and --subscription", dir)
	}
	// The folder's own entry must outlast a power cut too.
	if err := syncDir(filepath.Dir(filepath.Clean(dir))); err != nil {
		return nil, errors.Join(err, lock.Unlock())
	}
	return &parcels{dir, lock, testOrders, log}, nil
}

func (p *parcels) close() error { return p.lock.Unlock() }

// handle deals with one delivery. It may come twice, and after a crash at any
// line of this function; two of one order never run at once.
//
// Log lines and errors hold ids and what to do, never names or addresses: they go
// to places where these do not belong.
func (p *parcels) handle(_ context.Context, delivery *client.Delivery) error {
	event := delivery.Event
	order := event.GetOrder()
	revision, err := check(event)
	if err != nil {
		// Another try would not mend it: an operator has to see it.
		p.log.Error("rejected", "event", event.GetId(), "error", err)
		return client.Reject(err)
	}
	log := p.log.With("order", order.GetId(), "directive", strings.TrimPrefix(order.GetDirective().String(), "DIRECTIVE_"),
		"revision", revision, "items", len(order.GetLineItems()))
	// An erased order holds nothing but its id: whichever mode it was of, what
	// is kept of it must go.
	erased := event.GetKind() == ordergatev1.OrderEventKind_ORDER_EVENT_KIND_ERASED
	if !order.GetLivemode() && !p.testOrders && !erased {
		log.Info("skipped: an order of Stripe's test mode")
		return client.Skip(errors.New("an order of Stripe's test mode"))
	}

	name := filepath.Join(p.dir, order.GetId()+".json")
	stored, err := storedRevision(name)
	switch {
	case err != nil:
		// Such as a full disk, or a file that somebody edited: a plain error has
		// the event come again, with growing pauses.
		log.Error("failed", "error", err)
		return err
	case erased && stored == 0:
		return nil // it was never here
	case revision <= stored:
		// It was here before, or is a dead letter that an operator had delivered
		// again after a newer one. A crash may have come between the rename and
		// the sync below, so sync before it is acknowledged.
		log.Info("known already", "stored", stored)
		return syncDir(p.dir)
	}
	if err := write(name, event); err != nil {
		log.Error("failed", "error", err)
		return err
	}
	log.Info("stored")
	return nil // acknowledged: only now, as it is on the disk
}

// safeID are ids that are file names as they are: those of the gateway, and no
// path, dot or device.
var safeID = regexp.MustCompile(`^[A-Za-z0-9_]{1,200}$`)

// check returns the revision of an event's order, which is in the event's id:
// ORDER.REVISION. An erased order says it nowhere else.
func check(event *ordergatev1.OrderEvent) (revision int64, err error) {
	id := event.GetOrder().GetId()
	if id == "" {
		return 0, errors.New("the event has no order id")
	}
	if !safeID.MatchString(id) {
		return 0, fmt.Errorf("the order id %.50q is no safe file name", id)
	}
	number, ok := strings.CutPrefix(event.GetId(), id+".")
	if revision, err = strconv.ParseInt(number, 10, 64); !ok || err != nil || revision < 1 {
		return 0, fmt.Errorf("the event id %.50q is not the order's id and a revision", event.GetId())
	}
	return revision, nil
}

// storedRevision is 0 when there is no file.
func storedRevision(name string) (int64, error) {
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	var event ordergatev1.OrderEvent
	// A newer shipper may have stored fields that this one does not know.
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(data, &event); err != nil {
		return 0, fmt.Errorf("%s is damaged: move it away, and the order is stored anew", name)
	}
	revision, err := check(&event)
	if err != nil {
		return 0, fmt.Errorf("%s is damaged: %w", name, err)
	}
	return revision, nil
}

// write puts an event on the disk, so that at each moment, also after a power
// cut, the file is the old one or the new one, and whole.
func write(name string, event *ordergatev1.OrderEvent) (err error) {
	data, err := protojson.MarshalOptions{Multiline: true}.Marshal(event)
	if err != nil {
		return err
	}
	// In the same folder, as a rename does not cross file systems. What a crash
	// leaves behind begins with a dot, and may be deleted.
	temp, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			temp.Close()
			os.Remove(temp.Name())
		}
	}()
	if _, err := temp.Write(append(data, '\n')); err != nil {
		return err
	}
	if err := temp.Sync(); err != nil {
		return err
	}
	if err := temp.Close(); err != nil {
		return err
	}
	if err := os.Rename(temp.Name(), name); err != nil {
		return err
	}
	return syncDir(filepath.Dir(name))
}

// syncDir puts the names in a folder on the disk.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
