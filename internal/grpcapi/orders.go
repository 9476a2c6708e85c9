package grpcapi

import (
	"context"
	"slices"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/orders"
	"github.com/ordergate/ordergate/internal/pipeline"
	"github.com/ordergate/ordergate/internal/subscription"
)

const (
	defaultPageSize = 50
	maxPageSize     = 500
	// maxPageBytes ends a page early. A page and one order more, of 3.5 MiB at most, stay below
	// the 4 MiB that gRPC clients take by default.
	maxPageBytes = 400 << 10
	// maxListCalls bounds how much of the log one ListOrders looks at.
	maxListCalls = 20
	// maxReason bounds an operator's words, in characters.
	maxReason = 500
	// maxCause bounds the id of a cause that holds an order, in bytes.
	maxCause = 255
)

// orderService implements ordergate.v1.OrderService: it reads the log, and has
// the pipeline, the only writer of orders, do what operators ask for.
type orderService struct {
	ordergatev1.UnimplementedOrderServiceServer
	log           *eventlog.Log
	pipeline      *pipeline.Pipeline
	subscriptions *subscription.Manager
	peers         Peers // nil where the log is not shared
	// draining ends when open streams are to end.
	draining context.Context
	measures *measures
}

func (s *orderService) GetOrder(ctx context.Context, request *ordergatev1.GetOrderRequest) (*ordergatev1.GetOrderResponse, error) {
	if err := checkOrderID("order_id", request.GetOrderId()); err != nil {
		return nil, err
	}
	record, err := s.log.DurableOrder(ctx, request.GetOrderId())
	if err != nil {
		return nil, err
	}
	event, err := record.Event()
	if err != nil {
		return nil, err
	}
	return &ordergatev1.GetOrderResponse{Order: event.GetOrder()}, nil
}

func (s *orderService) ListOrders(ctx context.Context, request *ordergatev1.ListOrdersRequest) (*ordergatev1.ListOrdersResponse, error) {
	pageSize, err := checkPageSize(request.GetPageSize())
	if err != nil {
		return nil, err
	}
	state, err := s.log.OrdersState(ctx)
	if err != nil {
		return nil, err
	}
	snapshot, below := state.Durable, state.Durable+1
	if err := decodePageToken(request.GetPageToken(), orderPageToken, state.LogID, &snapshot, &below); err != nil {
		return nil, err
	}
	// A token is not authenticated: it must not reach events that are not durable yet.
	snapshot, below = min(snapshot, state.Durable), min(below, state.Durable+1)
	page := page[*ordergatev1.Order]{size: pageSize}
	for calls := 0; below != 0 && !page.full() && calls < maxListCalls; calls++ {
		var records []*eventlog.OrderRecord
		records, below, err = s.log.NewestOrders(ctx, snapshot, below, pageSize)
		if err != nil {
			return nil, err
		}
		for i, record := range records {
			event, err := record.Event()
			if err != nil {
				return nil, err
			}
			if matchesOrder(request.GetFilter(), event.GetOrder()) {
				page.add(event.GetOrder())
			}
			if page.full() {
				if i < len(records)-1 {
					below = record.Sequence
				}
				break
			}
		}
	}
	response := &ordergatev1.ListOrdersResponse{Orders: page.items}
	if below != 0 {
		response.NextPageToken = encodeToken(orderPageToken, state.LogID, snapshot, below)
	}
	return response, nil
}

// page collects what is listed up to a number and a size.
type page[T proto.Message] struct {
	size  int
	bytes int
	items []T
}

func (p *page[T]) add(item T) {
	p.items = append(p.items, item)
	p.bytes += proto.Size(item)
}

func (p *page[T]) full() bool { return len(p.items) >= p.size || p.bytes >= maxPageBytes }

func (s *orderService) ListOrderEvents(ctx context.Context, request *ordergatev1.ListOrderEventsRequest) (*ordergatev1.ListOrderEventsResponse, error) {
	if err := checkOrderID("order_id", request.GetOrderId()); err != nil {
		return nil, err
	}
	pageSize, err := checkPageSize(request.GetPageSize())
	if err != nil {
		return nil, err
	}
	newest, err := s.log.DurableOrder(ctx, request.GetOrderId())
	if err != nil {
		return nil, err
	}
	state, err := s.log.OrdersState(ctx)
	if err != nil {
		return nil, err
	}
	var after uint64
	if err := decodePageToken(request.GetPageToken(), eventPageToken, state.LogID, &after); err != nil {
		return nil, err
	}
	records, err := s.log.OrderEvents(ctx, request.GetOrderId(), after, pageSize)
	if err != nil {
		return nil, err
	}
	response := &ordergatev1.ListOrderEventsResponse{}
	for _, record := range records {
		event, err := record.Event()
		if err != nil {
			return nil, err
		}
		response.Events = append(response.Events, event)
		after = record.Sequence
	}
	if len(records) > 0 && after < newest.Sequence {
		response.NextPageToken = encodeToken(eventPageToken, state.LogID, after)
	}
	return response, nil
}

func (s *orderService) HoldOrder(ctx context.Context, request *ordergatev1.HoldOrderRequest) (*ordergatev1.HoldOrderResponse, error) {
	reason, err := checkOperation(request)
	if err != nil {
		return nil, err
	}
	order, err := s.pipeline.Hold(ctx, request.GetOrderId(), reason)
	if err != nil {
		return nil, err
	}
	return &ordergatev1.HoldOrderResponse{Order: order}, nil
}

func (s *orderService) ReleaseOrder(ctx context.Context, request *ordergatev1.ReleaseOrderRequest) (*ordergatev1.ReleaseOrderResponse, error) {
	reason, err := checkOperation(request)
	if err != nil {
		return nil, err
	}
	if err := checkCause(request.GetCause()); err != nil {
		return nil, err
	}
	decision, err := s.pipeline.Release(ctx, request.GetOrderId(), reason, request.GetCause())
	if err != nil {
		return nil, err
	}
	remaining := orders.Holding(decision.After)
	released := slices.DeleteFunc(orders.Holding(decision.Before), func(cause *ordergatev1.HoldRelease) bool {
		return slices.ContainsFunc(remaining, func(other *ordergatev1.HoldRelease) bool { return proto.Equal(cause, other) })
	})
	return &ordergatev1.ReleaseOrderResponse{Order: decision.After, Released: released, Remaining: remaining}, nil
}

// checkCause checks the cause that an order is to be released from, if there is one.
func checkCause(cause *ordergatev1.HoldRelease) error {
	if cause == nil {
		return nil
	}
	if _, known := ordergatev1.HoldReason_name[int32(cause.GetReason())]; !known || cause.GetReason() == ordergatev1.HoldReason_HOLD_REASON_UNSPECIFIED {
		return invalid("cause.reason", "%v is not a reason to hold an order", cause.GetReason())
	}
	if n := len(cause.GetCause()); n > maxCause {
		return invalid("cause.cause", "has %d bytes, at most %d", n, maxCause)
	}
	return nil
}

func (s *orderService) ReinstateOrder(ctx context.Context, request *ordergatev1.ReinstateOrderRequest) (*ordergatev1.ReinstateOrderResponse, error) {
	reason, err := checkOperation(request)
	if err != nil {
		return nil, err
	}
	decision, err := s.pipeline.Reinstate(ctx, request.GetOrderId(), reason)
	if err != nil {
		return nil, err
	}
	return &ordergatev1.ReinstateOrderResponse{Order: decision.After, Reinstated: orders.Canceling(decision.Before)}, nil
}

// checkOperation checks an operator's request, and returns the reason.
func checkOperation(request interface {
	GetOrderId() string
	GetReason() string
}) (reason string, err error) {
	if err := checkOrderID("order_id", request.GetOrderId()); err != nil {
		return "", err
	}
	reason = strings.TrimSpace(request.GetReason())
	if reason == "" {
		return "", invalid("reason", "is required: state why, for the next reader of the order's history")
	}
	if n := utf8.RuneCountInString(reason); n > maxReason {
		return "", invalid("reason", "has %d characters, at most %d", n, maxReason)
	}
	return reason, nil
}

func checkOrderID(field, id string) error {
	switch {
	case id == "":
		return invalid(field, "is required: the id of an order, such as cs_test_a1")
	case !eventlog.ValidOrderID(id):
		return invalid(field, "%.40q is not the id of an order: letters, digits and _ only", id)
	}
	return nil
}

func checkPageSize(size int32) (int, error) {
	switch {
	case size < 0:
		return 0, invalid("page_size", "is %d: want 1 to %d, or 0 for %d", size, maxPageSize, defaultPageSize)
	case size == 0:
		return defaultPageSize, nil
	}
	return min(int(size), maxPageSize), nil
}
