package main

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/client"
	"github.com/ordergate/ordergate/internal/sample"
	"github.com/ordergate/ordergate/internal/stripehook"
)

const (
	linearOrders  = 3
	linearClients = 4
	linearKills   = 3
	// linearOps is the number of known results between two kills.
	linearOps = 300
	// linearTime bounds the check.
	linearTime = 30 * time.Second
)

// orderState is the state of the model: the newest revision of an order, and the note of the
// operator's hold; empty if there is none.
type orderState struct {
	revision int64
	note     string
}

// orderOp is an operation on an order: get, watch, hold or release.
type orderOp struct {
	kind, order, note string
}

// orderResult is the result of an operation. It is unknown if the call failed: the operation took
// effect at any later time, or never.
type orderResult struct {
	orderState
	unknown bool
}

// orderModel is an order as its operators see it. A hold or release is a compare-and-set: it makes the
// next revision of the one that it found, or none if that is as wanted already.
var orderModel = porcupine.Model{
	Init: func() any { return orderState{revision: 1} },
	Step: func(state, input, output any) (bool, any) {
		next, op, result := state.(orderState), input.(orderOp), output.(orderResult)
		switch {
		case op.kind == "hold" && next.note != op.note, op.kind == "release" && next.note != "":
			next = orderState{next.revision + 1, op.note}
		}
		return result.unknown || next == result.orderState, next
	},
	Partition: func(history []porcupine.Operation) (parts [][]porcupine.Operation) {
		byOrder := map[string][]porcupine.Operation{}
		for _, op := range history {
			id := op.Input.(orderOp).order
			byOrder[id] = append(byOrder[id], op)
		}
		for _, part := range byOrder {
			parts = append(parts, part)
		}
		return parts
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprintf("%v: %v", input, output) },
}

// orderHistory records operations of several clients.
type orderHistory struct {
	t     *testing.T
	began time.Time
	mu    sync.Mutex
	ops   []porcupine.Operation
	known int
}

func newOrderHistory(t *testing.T) *orderHistory {
	return &orderHistory{t: t, began: time.Now()}
}

func (h *orderHistory) add(client int, op orderOp, called, returned time.Time, result orderResult) {
	h.mu.Lock()
	defer h.mu.Unlock()
	recorded := porcupine.Operation{ClientId: client, Input: op, Call: called.Sub(h.began).Nanoseconds(), Output: result, Return: returned.Sub(h.began).Nanoseconds()}
	if result.unknown {
		recorded.Return = math.MaxInt64
	} else {
		h.known++
	}
	h.ops = append(h.ops, recorded)
}

// results returns the number of known results.
func (h *orderHistory) results() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.known
}

// operate makes one random operation on one of the orders and records it. It returns the call's error.
func (h *orderHistory) operate(ctx context.Context, number, serial int, service ordergatev1.OrderServiceClient, ids []string) error {
	op := orderOp{kind: []string{"get", "get", "hold", "release"}[rand.IntN(4)], order: ids[rand.IntN(len(ids))]}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var order *ordergatev1.Order
	var err error
	called := time.Now()
	switch op.kind {
	case "get":
		var response *ordergatev1.GetOrderResponse
		response, err = service.GetOrder(ctx, &ordergatev1.GetOrderRequest{OrderId: op.order})
		order = response.GetOrder()
	case "hold":
		op.note = fmt.Sprintf("client %d, %d", number, serial)
		var response *ordergatev1.HoldOrderResponse
		response, err = service.HoldOrder(ctx, &ordergatev1.HoldOrderRequest{OrderId: op.order, Reason: op.note})
		order = response.GetOrder()
	case "release":
		var response *ordergatev1.ReleaseOrderResponse
		response, err = service.ReleaseOrder(ctx, &ordergatev1.ReleaseOrderRequest{OrderId: op.order, Reason: "checked"})
		order = response.GetOrder()
	}
	switch {
	case status.Code(err) == codes.NotFound:
		h.t.Errorf("%s of %s: %v", op.kind, op.order, err)
	case err != nil && op.kind == "get": // it changes nothing
	case err != nil:
		h.add(number, op, called, time.Time{}, orderResult{unknown: true})
	default:
		h.add(number, op, called, time.Now(), orderResult{orderState: stateOfOrder(order)})
	}
	return err
}

func stateOfOrder(order *ordergatev1.Order) orderState {
	return orderState{order.GetRevision(), order.GetOperatorHold().GetNote()}
}

// watch records each event as an observation: at some time before it arrived, its revision was the
// newest one. It also checks that no revision is missing.
func (h *orderHistory) watch(ctx context.Context, number int, gateway *client.Client, ids []string) {
	newest := map[string]int64{}
	for message, err := range gateway.Watch(ctx, client.WatchOptions{FromBeginning: true}) {
		if err != nil {
			h.t.Error(err)
			return
		}
		order := message.GetEvent().GetOrder()
		if !slices.Contains(ids, order.GetId()) {
			continue
		}
		if order.GetRevision() != newest[order.GetId()]+1 {
			h.t.Errorf("%s: revision %d is watched after %d", order.GetId(), order.GetRevision(), newest[order.GetId()])
		}
		newest[order.GetId()] = order.GetRevision()
		h.add(number, orderOp{kind: "watch", order: order.GetId()}, h.began, time.Now(), orderResult{orderState: stateOfOrder(order)})
	}
}

// check fails unless the history is linearizable.
func (h *orderHistory) check() {
	h.t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	kinds := map[string]int{}
	for _, op := range h.ops {
		kind := op.Input.(orderOp).kind
		if op.Output.(orderResult).unknown {
			kind += ", result unknown"
		}
		kinds[kind]++
	}
	result, info := porcupine.CheckOperationsVerbose(orderModel, h.ops, linearTime)
	h.t.Logf("%d operations, %v: %s", len(h.ops), kinds, result)
	if result == porcupine.Ok {
		return
	}
	file := h.t.ArtifactDir() + "/history.html"
	if err := porcupine.VisualizePath(orderModel, info, file); err != nil {
		h.t.Error(err)
	}
	h.t.Errorf("the history is not linearizable (%s); see %s with -artifacts", result, file)
}

// sendOrders sends new orders and returns their ids.
func sendOrders(ctx context.Context, t *testing.T, n int, url string) (ids []string) {
	t.Helper()
	secrets, err := stripehook.ParseSecrets(crashSecret)
	if err != nil {
		t.Fatal(err)
	}
	for range n {
		story, err := sample.Story(sample.Completed, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, story[0].OrderID)
		if err := post(ctx, url, secrets[0], story[0].Body); err != nil {
			t.Fatal(err)
		}
	}
	return ids
}

func awaitOrders(ctx context.Context, t *testing.T, service ordergatev1.OrderServiceClient, ids []string) {
	t.Helper()
	for _, id := range ids {
		waitFor(ctx, t, "the order is there", func() bool {
			_, err := service.GetOrder(ctx, &ordergatev1.GetOrderRequest{OrderId: id})
			return err == nil
		})
	}
}

// TestOrderModel checks that the model accepts what may happen, and nothing else.
func TestOrderModel(t *testing.T) {
	op := func(kind, note string, called, returned int64, revision int64, now string) porcupine.Operation {
		return porcupine.Operation{Input: orderOp{kind, "cs_1", note}, Call: called, Return: returned, Output: orderResult{orderState: orderState{revision, now}}}
	}
	lost := op("hold", "a", 1, math.MaxInt64, 0, "")
	lost.Output = orderResult{unknown: true}
	for name, tt := range map[string]struct {
		history []porcupine.Operation
		want    bool
	}{
		"one after the other":          {[]porcupine.Operation{op("hold", "a", 1, 2, 2, "a"), op("get", "", 3, 4, 2, "a"), op("release", "", 5, 6, 3, "")}, true},
		"a hold that is there":         {[]porcupine.Operation{op("hold", "a", 1, 2, 2, "a"), op("hold", "a", 3, 4, 2, "a")}, true},
		"a read during a hold":         {[]porcupine.Operation{op("hold", "a", 1, 9, 2, "a"), op("get", "", 2, 3, 1, ""), op("get", "", 4, 5, 2, "a")}, true},
		"a stale read":                 {[]porcupine.Operation{op("hold", "a", 1, 2, 2, "a"), op("get", "", 3, 4, 1, "")}, false},
		"two holds of one revision":    {[]porcupine.Operation{op("hold", "a", 1, 9, 2, "a"), op("hold", "b", 2, 8, 2, "b")}, false},
		"a read that goes back":        {[]porcupine.Operation{op("hold", "a", 1, 9, 2, "a"), op("get", "", 2, 3, 2, "a"), op("get", "", 4, 5, 1, "")}, false},
		"a late view of the past":      {[]porcupine.Operation{op("hold", "a", 1, 2, 2, "a"), op("watch", "", 0, 9, 1, "")}, true},
		"a view of the future":         {[]porcupine.Operation{op("watch", "", 0, 1, 2, "a"), op("hold", "a", 2, 3, 2, "a")}, false},
		"an unknown hold, seen":        {[]porcupine.Operation{lost, op("get", "", 5, 6, 2, "a")}, true},
		"an unknown hold, never seen":  {[]porcupine.Operation{lost, op("get", "", 5, 6, 1, "")}, true},
		"an unknown hold, undone":      {[]porcupine.Operation{lost, op("get", "", 5, 6, 2, "a"), op("get", "", 7, 8, 1, "")}, false},
		"a hold that a crash has lost": {[]porcupine.Operation{op("hold", "a", 1, 2, 2, "a"), op("hold", "b", 3, 4, 2, "b")}, false},
	} {
		if got := porcupine.CheckOperations(orderModel, tt.history); got != tt.want {
			t.Errorf("%s: linearizable = %v", name, got)
		}
	}
}

// TestLinearizableThroughCrashes has operators get, hold and release orders, and one watch them, while
// the gateway is killed and started again. The results are those of some sequence of the operations,
// each between its call and its return.
func TestLinearizableThroughCrashes(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes some seconds")
	}
	g := newCrashing(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	g.start(ctx)
	ids := sendOrders(ctx, t, linearOrders, "http://"+g.ingress+"/api/webhook")
	options := []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultServiceConfig(`{"methodConfig":[{"name":[{}],"waitForReady":true}]}`)}
	conn, err := grpc.NewClient(g.grpc, options...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	service := ordergatev1.NewOrderServiceClient(conn)
	awaitOrders(ctx, t, service, ids)
	gateway, err := client.New(g.grpc, options...)
	if err != nil {
		t.Fatal(err)
	}
	defer gateway.Close()

	history := newOrderHistory(t)
	operating, stop := context.WithCancel(ctx)
	watching, stopWatch := context.WithCancel(ctx)
	defer stop()
	defer stopWatch()
	var operators, watcher sync.WaitGroup
	for number := range linearClients {
		operators.Go(func() {
			for serial := 0; operating.Err() == nil; serial++ {
				history.operate(ctx, number, serial, service, ids)
			}
		})
	}
	watcher.Go(func() { history.watch(watching, linearClients, gateway, ids) })
	for kill := range linearKills {
		waitFor(ctx, t, "results", func() bool { return history.results() >= (kill+1)*linearOps })
		g.end(os.Kill)
		g.start(ctx)
	}
	waitFor(ctx, t, "results", func() bool { return history.results() >= (linearKills+1)*linearOps })
	stop()
	operators.Wait()
	stopWatch()
	watcher.Wait()
	g.end(os.Interrupt)
	history.check()
}
