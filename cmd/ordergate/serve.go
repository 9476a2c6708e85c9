package main

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"os"
	"runtime"
	"strings"

	"github.com/KimMachineGun/automemlimit/memlimit"

	"github.com/ordergate/ordergate/internal/config"
	"github.com/ordergate/ordergate/internal/orders"
	"github.com/ordergate/ordergate/internal/telemetry"
)

// defaultDataDir is where serve keeps the log unless told otherwise.
const defaultDataDir = "ordergate-data"

type serveCommand struct {
	config.Config `embed:""`
}

// Help is the longer text of `ordergate serve --help`.
func (serveCommand) Help() string {
	return `Three doors: the ingress for Stripe (:3000), gRPC for subscribers (127.0.0.1:50051), admin HTTP for operators (127.0.0.1:8080).

At Stripe, create a webhook endpoint (payload style Snapshot) with the URL https://YOUR-HOST/api/webhook, and put its signing secret into STRIPE_WEBHOOK_SECRET. Subscribe it to: ` + strings.Join(orders.EventTypes(), ", ") + `.

With an API key in STRIPE_API_KEY (a restricted one is enough) orders carry their line items, lost sales are looked up, and events that were missed are listed.

Example:
  STRIPE_WEBHOOK_SECRET=whsec_… ordergate serve --data-dir /var/lib/ordergate`
}

func (s *serveCommand) Run(ctx context.Context, c console) error {
	if s.NATS.Cluster() == nil {
		if s.DataDir == "" {
			s.DataDir = defaultDataDir
		}
		leaveOneToTheDisk()
	}
	logger := telemetry.NewLogger(c.stderr, s.Log.Format, s.Log.Level)
	keepToMemory(logger)
	g, err := newGateway(ctx, s.Config, logger)
	if err != nil && ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil // told to stop before it had begun
	}
	if err != nil {
		return err
	}
	return g.run(ctx)
}

// keepToMemory has Go collect garbage in time for the limit of the container or the unit:
// after random reads of a large log there may be much of it. GOMEMLIMIT comes first.
func keepToMemory(logger *slog.Logger) {
	if limit, err := memlimit.Set(); err != nil {
		logger.Debug("no memory limit can be read; GOMEMLIMIT sets one", "error", err)
	} else if limit < math.MaxInt64 {
		logger.Debug("memory is limited", "bytes", limit)
	}
}

// leaveOneToTheDisk gives Go one processor more than there are: a thread that flushes the
// log is within that call most of the time, and keeps its processor from the others for
// much of it. Whoever sets GOMAXPROCS knows better.
func leaveOneToTheDisk() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 1)
	}
}
