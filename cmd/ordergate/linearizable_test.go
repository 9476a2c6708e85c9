package main

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/sample"
	"github.com/ordergate/ordergate/internal/stripehook"
)

// operation is the input of an operator's call; output is its result.
type (
	operation struct {
		order string
		call  string // get, hold or release
		note  string // of a hold
	}
	output struct {
		state
		unknown bool // the call failed, and may have taken effect
		refused bool // a release of an order that nothing holds
	}
	// state is an order as the model has it: its revision, and the note of the operator's hold.
	state struct {
		revision int64
		note     string
	}
)

// orderModel is the specification of an order under holds and releases. A call that failed may have
// taken effect or not.
var orderModel = porcupine.NondeterministicModel{
	Partition: func(history []porcupine.Operation) (parts [][]porcupine.Operation) {
		byOrder := map[string][]porcupine.Operation{}
		for _, op := range history {
			order := op.Input.(operation).order
			byOrder[order] = append(byOrder[order], op)
		}
		for _, part := range byOrder {
			parts = append(parts, part)
		}
		return parts
	},
	Init: func() []any { return []any{state{revision: 1}} },
	Step: func(from, input, result any) []any {
		before, op, out := from.(state), input.(operation), result.(output)
		after := before
		switch {
		case op.call == "hold" && before.note != op.note:
			after = state{before.revision + 1, op.note}
		case op.call == "release" && before.note != "":
			after = state{before.revision + 1, ""}
		}
		switch {
		case out.unknown:
			return []any{before, after}
		case out.refused && after == before, !out.refused && out.state == after:
			return []any{after}
		}
		return nil
	},
	DescribeOperation: func(input, result any) string { return fmt.Sprintf("%+v -> %+v", input, result) },
}

// history records the calls of operators about some orders.
type history struct {
	t      *testing.T
	orders []string
	began  time.Time

	mu         sync.Mutex
	operations []porcupine.Operation
}

// newHistory makes some paid orders through a webhook address.
func newHistory(ctx context.Context, t *testing.T, url, gateway string) *history {
	h := &history{t: t, began: time.Now()}
	secrets, err := stripehook.ParseSecrets(crashSecret)
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		story, err := sample.Scenario("paid", time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if err := post(ctx, url, secrets[0], story[0].Body); err != nil {
			t.Fatal(err)
		}
		h.orders = append(h.orders, story[0].OrderID)
		waitFor(ctx, t, "an order", func() bool {
			return !call(ctx, gateway, operation{order: story[0].OrderID, call: "get"}).unknown
		})
	}
	return h
}

// operate makes calls at random gateways until ctx ends.
func (h *history) operate(ctx context.Context, client int, gateway func() string) {
	for i := 0; ctx.Err() == nil; i++ {
		op := operation{order: h.orders[rand.IntN(len(h.orders))], call: []string{"get", "get", "hold", "release"}[rand.IntN(4)]}
		if op.call == "hold" {
			op.note = fmt.Sprintf("%d.%d", client, i)
		}
		began := time.Since(h.began)
		out := call(ctx, gateway(), op)
		ended := time.Since(h.began).Nanoseconds()
		if out.unknown {
			if ended = math.MaxInt64; op.call == "get" {
				continue // it changes nothing
			}
		}
		h.mu.Lock()
		h.operations = append(h.operations, porcupine.Operation{ClientId: client, Input: op, Call: began.Nanoseconds(), Output: out, Return: ended})
		h.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(rand.IntN(60)) * time.Millisecond): // a rate that the check can follow
		}
	}
}

// call makes one call. Its connection is its own, so that it is never retried behind its back.
func call(ctx context.Context, gateway string, op operation) output {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := grpc.NewClient(gateway, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry())
	if err != nil {
		return output{unknown: true}
	}
	defer conn.Close()
	service := ordergatev1.NewOrderServiceClient(conn)
	var order *ordergatev1.Order
	switch op.call {
	case "get":
		var response *ordergatev1.GetOrderResponse
		response, err = service.GetOrder(ctx, &ordergatev1.GetOrderRequest{OrderId: op.order})
		order = response.GetOrder()
	case "hold":
		var response *ordergatev1.HoldOrderResponse
		response, err = service.HoldOrder(ctx, &ordergatev1.HoldOrderRequest{OrderId: op.order, Reason: op.note})
		order = response.GetOrder()
	case "release":
		var response *ordergatev1.ReleaseOrderResponse
		response, err = service.ReleaseOrder(ctx, &ordergatev1.ReleaseOrderRequest{OrderId: op.order, Reason: "go on"})
		order = response.GetOrder()
	}
	switch {
	case status.Code(err) == codes.FailedPrecondition:
		return output{refused: true}
	case err != nil:
		return output{unknown: true}
	}
	return output{state: state{order.GetRevision(), order.GetOperatorHold().GetNote()}}
}

// check fails the test if the calls cannot have happened one after the other, each at a moment
// between its beginning and its end.
func (h *history) check() {
	h.mu.Lock()
	defer h.mu.Unlock()
	unknown := 0
	for _, op := range h.operations {
		if op.Output.(output).unknown {
			unknown++
		}
	}
	result := porcupine.CheckOperationsTimeout(orderModel.ToModel(), h.operations, time.Minute)
	h.t.Logf("%d calls of operators, %d of them with an unknown result: linearizable %v", len(h.operations), unknown, result)
	if result == porcupine.Illegal {
		h.t.Error("the calls of operators are not linearizable")
	}
	if len(h.operations) < 50 {
		h.t.Error("too few calls: the check shows nothing")
	}
}

// Reads, holds and releases of orders are linearizable, also when the gateway is killed in the
// middle of them and started again.
func TestOperatorsAreLinearizable(t *testing.T) {
	g := newCrashing(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	g.start(ctx)
	h := newHistory(ctx, t, "http://"+g.ingress+"/api/webhook", g.grpc)
	operating, stop := context.WithCancel(ctx)
	var operators sync.WaitGroup
	for client := range 5 {
		operators.Go(func() { h.operate(operating, client, func() string { return g.grpc }) })
	}
	made := func() int {
		h.mu.Lock()
		defer h.mu.Unlock()
		return len(h.operations)
	}
	for life := range 3 {
		waitFor(ctx, t, "calls", func() bool { return made() > (life+1)*120 })
		g.process.Process.Kill()
		<-g.ended
		g.start(ctx)
	}
	waitFor(ctx, t, "calls", func() bool { return made() > 480 })
	stop()
	operators.Wait()
	h.check()
}

// The model refuses a read of what an answered hold has replaced.
func TestOrderModel(t *testing.T) {
	hold := porcupine.Operation{Input: operation{"cs_1", "hold", "x"}, Output: output{state: state{2, "x"}}, Call: 1, Return: 2}
	for old, want := range map[output]bool{{state: state{2, "x"}}: true, {state: state{1, ""}}: false} {
		get := porcupine.Operation{Input: operation{"cs_1", "get", ""}, Output: old, Call: 3, Return: 4}
		if got := porcupine.CheckOperations(orderModel.ToModel(), []porcupine.Operation{hold, get}); got != want {
			t.Errorf("a read of %+v after a hold: %v", old, got)
		}
	}
}
