package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// patience is how long a test waits for what comes in milliseconds.
const patience = 30 * time.Second

// subscription is what a shipper works on in these tests: a gateway with these
// events in its log. A real gateway can stand in for the scripted one: something
// else that has the events, an address, and a list of dead letters.
type subscription interface {
	addr() string
	// settled waits until all events are done with, and says how: "ack", "skip",
	// or "dead_letter" and the reason.
	settled(t *testing.T) map[string]string
}

// scripted is a gateway with one stream, which delivers the next event of an
// order when the one before it is done with.
type scripted struct {
	ordergatev1.UnimplementedSubscriptionServiceServer
	address string

	mu     sync.Mutex
	events []*ordergatev1.OrderEvent
	how    map[string]string
	done   chan struct{} // closed when all events are
	opens  []*ordergatev1.ConsumeOpen
	nacked chan string // reasons of RETRY
	refuse error
}

var _ subscription = (*scripted)(nil)

func startScripted(t *testing.T, events ...*ordergatev1.OrderEvent) *scripted {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &scripted{address: listener.Addr().String(), events: events, how: map[string]string{}, done: make(chan struct{}), nacked: make(chan string, 100)}
	server := grpc.NewServer()
	ordergatev1.RegisterSubscriptionServiceServer(server, s)
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	return s
}

func (s *scripted) addr() string { return s.address }

func (s *scripted) settled(t *testing.T) map[string]string {
	t.Helper()
	select {
	case <-s.done:
	case <-time.After(patience):
		t.Errorf("not all events are settled")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.how
}

// deliveryID tells events apart that have the same id.
func deliveryID(i int, event *ordergatev1.OrderEvent) string {
	return fmt.Sprintf("%d:%s", i, event.GetId())
}

func (s *scripted) Consume(stream grpc.BidiStreamingServer[ordergatev1.ConsumeRequest, ordergatev1.ConsumeResponse]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.opens = append(s.opens, first.GetOpen())
	refuse := s.refuse
	s.mu.Unlock()
	if refuse != nil {
		return refuse
	}
	stream.Send(&ordergatev1.ConsumeResponse{Payload: &ordergatev1.ConsumeResponse_Opened{Opened: &ordergatev1.ConsumeOpened{}}})
	out := map[string]string{} // what is out, by order
	stopped := false
	for {
		s.mu.Lock()
		for i, event := range s.events {
			id, order := deliveryID(i, event), cmp.Or(event.GetOrder().GetId(), event.GetId())
			if s.how[id] == "" && out[order] == "" && !stopped {
				out[order] = id
				stream.Send(&ordergatev1.ConsumeResponse{Payload: &ordergatev1.ConsumeResponse_Delivery{Delivery: &ordergatev1.Delivery{DeliveryId: id, Event: event, Attempt: 1}}})
			}
		}
		s.mu.Unlock()
		if stopped && len(out) == 0 {
			return nil
		}
		request, err := stream.Recv()
		if err != nil {
			return err
		}
		stopped = stopped || request.GetStop()
		results := &ordergatev1.DeliveryResults{}
		s.mu.Lock()
		settle := func(id, how string) {
			results.Results = append(results.Results, &ordergatev1.DeliveryResult{DeliveryId: id, Code: ordergatev1.DeliveryResultCode_DELIVERY_RESULT_CODE_OK})
			for order, other := range out {
				if other == id {
					delete(out, order)
				}
			}
			if how == "" {
				return
			}
			if s.how[id] = how; len(s.how) == len(s.events) {
				close(s.done)
			}
		}
		for _, id := range request.GetAcks() {
			settle(id, "ack")
		}
		for _, nack := range request.GetNacks() {
			switch nack.GetAction() {
			case ordergatev1.NackAction_NACK_ACTION_SKIP:
				settle(nack.GetDeliveryId(), "skip")
			case ordergatev1.NackAction_NACK_ACTION_DEAD_LETTER:
				settle(nack.GetDeliveryId(), "dead_letter: "+nack.GetReason())
			default:
				select {
				case s.nacked <- nack.GetReason():
				default:
				}
				settle(nack.GetDeliveryId(), "")
			}
		}
		s.mu.Unlock()
		stream.Send(&ordergatev1.ConsumeResponse{Payload: &ordergatev1.ConsumeResponse_Results{Results: results}})
	}
}

// runShipper runs it until stop is called, which returns its log.
func runShipper(t *testing.T, addr string, args ...string) (stop func() string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var stdout, stderr bytes.Buffer
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, append([]string{"--addr", addr}, args...), &stdout, &stderr) }()
	return func() string {
		t.Helper()
		cancel()
		select {
		case err := <-ended:
			if err != nil || stdout.Len() > 0 {
				t.Errorf("ended with %v; stdout %q", err, &stdout)
			}
			return stderr.String()
		case <-time.After(patience):
			t.Fatal("does not stop")
			return ""
		}
	}
}

func order(id string, revision int64, livemode bool) *ordergatev1.OrderEvent {
	return &ordergatev1.OrderEvent{
		Id: fmt.Sprintf("%s.%d", id, revision), Kind: ordergatev1.OrderEventKind_ORDER_EVENT_KIND_PAID, Sequence: revision,
		Order: &ordergatev1.Order{
			Id: id, Revision: revision, Livemode: new(livemode), Directive: ordergatev1.Directive_DIRECTIVE_SHIP,
			LineItems: []*ordergatev1.LineItem{{Id: "li_1"}, {Id: "li_2"}},
			Shipping:  &ordergatev1.Shipping{Name: "Erika Mustermann", Address: &ordergatev1.Address{City: "Köln", Country: "DE"}},
			Customer:  &ordergatev1.Customer{Name: "Erika Mustermann", Email: "erika@example.com"},
		},
	}
}

func erased(id string, revision int64) *ordergatev1.OrderEvent {
	return &ordergatev1.OrderEvent{Id: fmt.Sprintf("%s.%d", id, revision), Kind: ordergatev1.OrderEventKind_ORDER_EVENT_KIND_ERASED, Order: &ordergatev1.Order{Id: id}}
}

// stored is what a folder holds: the id of the event in each file.
func stored(t *testing.T, dir string) map[string]string {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, file := range files {
		if file.Name() == ".lock" {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, file.Name()))
		if err != nil {
			t.Fatal(err)
		}
		var event ordergatev1.OrderEvent
		if err := protojson.Unmarshal(data, &event); err != nil {
			t.Errorf("%s: %v", file.Name(), err)
		}
		found[file.Name()] = event.GetId()
	}
	return found
}

func expect[T any](t *testing.T, what string, want, got T) {
	t.Helper()
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("%s: %s", what, diff)
	}
}

func TestShipper(t *testing.T) {
	unsafe := []string{"../cs_1", "cs/1", ".", "..", ".hidden", "cs_1.json", "cs 1", "CON:", "cs\n", strings.Repeat("x", 201)}
	events := []*ordergatev1.OrderEvent{
		order("cs_live_1", 1, true), order("cs_live_1", 3, true), order("cs_live_1", 3, true), order("cs_live_1", 2, true), // redelivered, and redriven
		order("cs_live_2", 1, true),
		order("cs_test_3", 1, false),
		{Id: "cs_4.1", Order: &ordergatev1.Order{Id: "cs_4"}}, // says nothing of its mode
		order("cs_live_5", 10, true), erased("cs_live_5", 11), order("cs_live_5", 9, true),
		erased("cs_6", 2), // was never here
		{Id: "x.1"}, {Id: "x.2", Order: &ordergatev1.Order{}},
		{Id: "cs_8.x", Order: &ordergatev1.Order{Id: "cs_8"}}, {Id: "cs_9", Order: &ordergatev1.Order{Id: "cs_9"}}, {Id: "cs_0.1", Order: &ordergatev1.Order{Id: "cs_10"}},
	}
	want := []string{"ack", "ack", "ack", "ack", "ack", "skip", "skip", "ack", "ack", "ack", "ack",
		"dead_letter: the event has no order id", "dead_letter: the event has no order id",
		`dead_letter: the event id "cs_8.x" is not the order's id and a revision`, `dead_letter: the event id "cs_9" is not the order's id and a revision`,
		`dead_letter: the event id "cs_0.1" is not the order's id and a revision`}
	for _, id := range unsafe {
		events = append(events, order(id, 1, true))
		want = append(want, fmt.Sprintf("dead_letter: the order id %.50q is no safe file name", id))
	}
	wantHow := map[string]string{}
	for i, event := range events {
		wantHow[deliveryID(i, event)] = want[i]
	}
	root := t.TempDir()
	out := filepath.Join(root, "the", "parcels")
	for range 2 { // the second time, everything is known
		var gateway subscription = startScripted(t, events...)
		stop := runShipper(t, gateway.addr(), "--out", out)
		expect(t, "settled", wantHow, gateway.settled(t))
		log := stop()
		expect(t, "stored", map[string]string{"cs_live_1.json": "cs_live_1.3", "cs_live_2.json": "cs_live_2.1", "cs_live_5.json": "cs_live_5.11"}, stored(t, out))
		for _, private := range []string{"Erika", "Mustermann", "Köln", "example.com"} {
			if strings.Contains(log, private) {
				t.Errorf("%s is in the log:\n%s", private, log)
			}
			if data, _ := os.ReadFile(filepath.Join(out, "cs_live_5.json")); strings.Contains(string(data), private) {
				t.Errorf("%s was not erased", private)
			}
		}
	}
	if found, err := os.ReadDir(root); err != nil || len(found) != 1 {
		t.Errorf("outside of the folder: %v, %v", found, err)
	}
	if info, err := os.Stat(filepath.Join(out, "cs_live_1.json")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}

func TestShipperLog(t *testing.T) {
	gateway := startScripted(t, order("cs_live_1", 7, true), order("cs_test_2", 1, false))
	stop := runShipper(t, gateway.addr(), "--out", t.TempDir())
	gateway.settled(t)
	log := stop()
	for _, line := range []string{
		"msg=stored order=cs_live_1 directive=SHIP revision=7 items=2\n",
		`msg="skipped: an order of Stripe's test mode" order=cs_test_2 directive=SHIP revision=1 items=2` + "\n",
		"msg=stopped\n",
	} {
		if !strings.Contains(log, line) {
			t.Errorf("no %q in:\n%s", line, log)
		}
	}
}

// How it opens the subscription, by flags and by environment variables.
func TestShipperOpens(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct {
		args []string
		env  map[string]string
		want string
	}{
		{nil, nil, "shipping false"},
		{[]string{"--subscription", "other", "--from-beginning"}, nil, "other true"},
		{nil, map[string]string{"SHIPPER_SUBSCRIPTION": "other", "SHIPPER_FROM_BEGINNING": "true"}, "other true"},
	} {
		for name, value := range tt.env {
			t.Setenv(name, value)
		}
		gateway := startScripted(t, order("cs_live_1", 1, true))
		stop := runShipper(t, gateway.addr(), append(tt.args, "--out", dir)...)
		gateway.settled(t)
		stop()
		open := gateway.opens[0]
		expect(t, "open", tt.want, fmt.Sprint(open.GetSubscription(), " ", open.GetStart().GetBeginning()))
		if open.GetCreate() == nil {
			t.Error("is not made when it is missing")
		}
	}
}

func TestShipperTakesTestOrders(t *testing.T) {
	dir := t.TempDir()
	gateway := startScripted(t, order("cs_test_1", 1, false))
	stop := runShipper(t, gateway.addr(), "--out", dir, "--test-orders")
	expect(t, "settled", map[string]string{"0:cs_test_1.1": "ack"}, gateway.settled(t))
	stop()
	expect(t, "stored", map[string]string{"cs_test_1.json": "cs_test_1.1"}, stored(t, dir))
}

// What cannot be stored now comes again.
func TestShipperFailsForAWhile(t *testing.T) {
	dir := t.TempDir()
	gateway := startScripted(t, order("cs_live_1", 1, true), order("cs_live_2", 1, true), order("cs_live_3", 1, true))
	damaged, taken := filepath.Join(dir, "cs_live_1.json"), filepath.Join(dir, "cs_live_2.json")
	if err := os.WriteFile(damaged, []byte(`{"id":"Erika`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(taken, 0o700); err != nil {
		t.Fatal(err)
	}
	stop := runShipper(t, gateway.addr(), "--out", dir)
	reasons := []string{}
	for len(reasons) < 2 {
		select {
		case reason := <-gateway.nacked:
			if !slices.Contains(reasons, reason) {
				reasons = append(reasons, reason)
			}
		case <-time.After(patience):
			t.Fatalf("nacked: %q", reasons)
		}
	}
	if reason := strings.Join(reasons, " "); !strings.Contains(reason, damaged+" is damaged: move it away") || !strings.Contains(reason, "cs_live_2.json") || strings.Contains(reason, "Erika") {
		t.Errorf("reasons %q", reasons)
	}
	if err := os.Remove(damaged); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(taken); err != nil {
		t.Fatal(err)
	}
	gateway.settled(t)
	stop()
	expect(t, "stored", map[string]string{"cs_live_1.json": "cs_live_1.1", "cs_live_2.json": "cs_live_2.1", "cs_live_3.json": "cs_live_3.1"}, stored(t, dir))
}

// A write that fails leaves the old file, and nothing else.
func TestWriteFails(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "cs_1.json")
	if err := os.Mkdir(name, 0o700); err != nil { // nothing can be renamed to it
		t.Fatal(err)
	}
	if err := write(name, order("cs_1", 1, true)); err == nil {
		t.Error("no error")
	}
	if found, _ := os.ReadDir(dir); len(found) != 1 {
		t.Errorf("left: %v", found)
	}
}

func TestShipperErrors(t *testing.T) {
	dir := t.TempDir()
	gateway := startScripted(t)
	gateway.refuse = status.Error(codes.InvalidArgument, "subscription: a name is wanted")
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	held, err := openParcels(filepath.Join(dir, "held"), false, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer held.close()
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"--no"}, "run shipper --help"},
		{[]string{"--out", file}, "file: not a directory"},
		{[]string{"--out", filepath.Join(dir, "held")}, "another shipper works on"},
		{[]string{"--out", dir}, "a name is wanted"},
	} {
		var stdout, stderr bytes.Buffer
		err := run(t.Context(), append(tt.args, "--addr", gateway.addr()), &stdout, &stderr)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v: %v", tt.args, err)
		}
	}
}

// Every flag and its variable is in --help.
func TestShipperHelp(t *testing.T) {
	var stdout, stderr bytes.Buffer
	if err := run(t.Context(), []string{"--help"}, &stdout, &stderr); err != nil || stderr.Len() > 0 {
		t.Errorf("%v %q", err, &stderr)
	}
	for _, word := range []string{"--addr", "$ORDERGATE_ADDR", "--subscription", "$SHIPPER_SUBSCRIPTION", "--from-beginning", "$SHIPPER_FROM_BEGINNING",
		"--test-orders", "$SHIPPER_TEST_ORDERS", "--out", "$SHIPPER_OUT"} {
		if !strings.Contains(stdout.String(), word) {
			t.Errorf("no %s in:\n%s", word, &stdout)
		}
	}
}
