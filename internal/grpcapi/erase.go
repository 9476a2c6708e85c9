package grpcapi

import (
	"regexp"
	"time"

	"google.golang.org/grpc"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/pipeline"
)

const (
	maxErasedOrders    = 100
	maxErasedCustomers = 10
	// maxErasedIDs bounds the ids that the last message of EraseOrders lists.
	maxErasedIDs = 1000
)

// customerShape is a Stripe Customer id or an e-mail address, as far as one can be
// looked for in Stripe's JSON.
var customerShape = regexp.MustCompile(`^(cus_[A-Za-z0-9_]{1,200}|[^\s"\\@]{1,200}@[^\s"\\@]{1,200})$`)

func (s *orderService) EraseOrders(request *ordergatev1.EraseOrdersRequest, stream grpc.ServerStreamingServer[ordergatev1.EraseOrdersResponse]) error {
	if err := checkErasure(request); err != nil {
		return err
	}
	ctx, cancel := untilDraining(stream.Context(), s.draining)
	defer cancel()
	selection := pipeline.Selection{OrderIDs: request.GetOrderIds(), Customers: request.GetCustomers(), DryRun: request.GetDryRun()}
	lastSent := time.Now()
	report, err := s.pipeline.Erase(ctx, selection, s.forgetEverywhere, func(report pipeline.ErasureReport) {
		if time.Since(lastSent) < progressInterval {
			return
		}
		lastSent = time.Now()
		if err := stream.Send(erasureResponse(report)); err != nil {
			cancel() // nobody listens any more
		}
	})
	if err != nil {
		return causeOf(ctx, err)
	}
	last := erasureResponse(report)
	last.Done, last.OrderIds = true, report.Orders[:min(len(report.Orders), maxErasedIDs)]
	return stream.Send(last)
}

func erasureResponse(report pipeline.ErasureReport) *ordergatev1.EraseOrdersResponse {
	return &ordergatev1.EraseOrdersResponse{
		Examined:     report.OrdersRead + report.EventsRead,
		Total:        report.OrdersTotal + report.EventsTotal,
		Orders:       int64(len(report.Orders)),
		OrderEvents:  report.OrderEvents,
		StripeEvents: report.Events,
		References:   report.References,

		PendingEvents: report.Pending,
	}
}

func checkErasure(request *ordergatev1.EraseOrdersRequest) error {
	orders, customers := request.GetOrderIds(), request.GetCustomers()
	switch {
	case len(orders)+len(customers) == 0:
		return invalid("order_ids", "is empty, and so is customers: say whose data is to be erased")
	case len(orders) > maxErasedOrders:
		return invalid("order_ids", "has %d ids, at most %d: call several times", len(orders), maxErasedOrders)
	case len(customers) > maxErasedCustomers:
		return invalid("customers", "has %d customers, at most %d: call several times", len(customers), maxErasedCustomers)
	}
	for _, id := range orders {
		if err := checkOrderID("order_ids", id); err != nil {
			return err
		}
	}
	for i, customer := range customers {
		if !customerShape.MatchString(customer) {
			return invalid("customers", "number %d is neither a Stripe Customer id (cus_…) nor an e-mail address", i+1)
		}
	}
	return nil
}
