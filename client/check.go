package client

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// Bounds of options. Those of the gateway are the same as in its contract.
const (
	maxConcurrency      = maxOutstanding
	maxOutstandingBytes = 256 << 20
	maxAttempts         = 1000
	maxMinBackoff       = time.Hour
	maxMaxBackoff       = 24 * time.Hour
	maxResumeToken      = 4096 // in bytes; tokens of today have about 50
	maxFilterValues     = 300  // of one condition
)

var (
	subscriptionShape = regexp.MustCompile(`^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$`)
	clientIDShape     = regexp.MustCompile(`^[ -~]*$`)
)

// checkConsume returns an error of the code INVALID_ARGUMENT that names every invalid argument of
// Consume and its value, or nil.
func checkConsume(subscription string, handler Handler, o *ConsumeOptions) error {
	var handlerErr error
	if handler == nil {
		handlerErr = errors.New("handler is nil")
	}
	return invalidArgument("consume", errors.Join(
		checkName("subscription name", subscription),
		handlerErr,
		checkRange("ConsumeOptions.Concurrency", int64(o.Concurrency), 0, maxConcurrency),
		checkRange("ConsumeOptions.MaxOutstandingEvents", int64(o.MaxOutstandingEvents), 0, maxOutstanding),
		checkRange("ConsumeOptions.MaxOutstandingBytes", o.MaxOutstandingBytes, 0, maxOutstandingBytes),
		checkClientID(o.ClientID),
		checkDuration("ConsumeOptions.AckDeadline", o.AckDeadline, minAckDeadline, maxAckDeadline),
		checkDuration("ConsumeOptions.MaxExtension", o.MaxExtension, 0, math.MaxInt64),
		checkDuration("ConsumeOptions.Heartbeat", o.Heartbeat, minHeartbeat, maxHeartbeat),
		checkDuration("ConsumeOptions.DrainTimeout", o.DrainTimeout, 0, math.MaxInt64),
		checkCreate(subscription, o.Create),
		checkStart(o.Start),
	))
}

// checkWatch is checkConsume for Watch.
func checkWatch(o *WatchOptions) error {
	return invalidArgument("watch", errors.Join(
		checkToken("WatchOptions.ResumeToken", o.ResumeToken),
		checkTime("WatchOptions.Since", o.Since),
		checkFilter("WatchOptions.Filter", o.Filter),
		checkDuration("WatchOptions.Heartbeat", o.Heartbeat, minHeartbeat, maxHeartbeat),
	))
}

// invalidArgument turns an error into a gRPC status, as the gateway would.
func invalidArgument(operation string, err error) error {
	if err == nil {
		return nil
	}
	return status.Errorf(codes.InvalidArgument, "%s: %v", operation, err)
}

func checkName(option, name string) error {
	if !subscriptionShape.MatchString(name) {
		return fmt.Errorf("%s %.70q is invalid: use 1–63 lower-case letters, digits and hyphens; the first character is a letter, the last one no hyphen", option, name)
	}
	return nil
}

func checkClientID(id string) error {
	if len(id) > maxClientID || !clientIDShape.MatchString(id) {
		return fmt.Errorf("ConsumeOptions.ClientID %.140q is invalid: use up to %d printable ASCII characters", id, maxClientID)
	}
	return nil
}

func checkRange(option string, value, least, most int64) error {
	if value < least || value > most {
		return fmt.Errorf("%s is %d, want %d to %d", option, value, least, most)
	}
	return nil
}

// checkDuration accepts 0, which stands for a default, and least to most.
func checkDuration(option string, value, least, most time.Duration) error {
	switch {
	case value == 0 || value >= least && value <= most:
		return nil
	case most == math.MaxInt64:
		return fmt.Errorf("%s is %v, want %v or more", option, value, least)
	}
	return fmt.Errorf("%s is %v, want 0 or %v to %v", option, value, least, most)
}

// checkSetting accepts nil, which stands for a default, and least to most.
func checkSetting(option string, value *durationpb.Duration, least, most time.Duration) error {
	if value == nil {
		return nil
	}
	if err := value.CheckValid(); err != nil {
		return fmt.Errorf("%s is invalid: %w", option, err)
	}
	if d := value.AsDuration(); d < least || d > most {
		return fmt.Errorf("%s is %v, want %v to %v", option, d, least, most)
	}
	return nil
}

func checkTime(option string, at time.Time) error {
	if at.IsZero() {
		return nil
	}
	if err := timestamppb.New(at).CheckValid(); err != nil {
		return fmt.Errorf("%s is invalid: %w", option, err)
	}
	return nil
}

func checkToken(option, token string) error {
	if len(token) > maxResumeToken {
		return fmt.Errorf("%s has %d bytes, want %d at most", option, len(token), maxResumeToken)
	}
	return nil
}

// checkCreate checks the settings of a new subscription. The gateway checks the rest of the filter.
func checkCreate(subscription string, create *ordergatev1.Subscription) error {
	if create == nil {
		return nil
	}
	var nameErr error
	if name := create.GetName(); name != "" && name != subscription {
		nameErr = fmt.Errorf("ConsumeOptions.Create.name is %.70q, want %q or empty", name, subscription)
	}
	least := create.GetMinBackoff().AsDuration()
	return errors.Join(
		nameErr,
		checkFilter("ConsumeOptions.Create.filter", create.GetFilter()),
		checkSetting("ConsumeOptions.Create.ack_deadline", create.GetAckDeadline(), minAckDeadline, maxAckDeadline),
		checkRange("ConsumeOptions.Create.max_attempts", int64(create.GetMaxAttempts()), 0, maxAttempts),
		checkSetting("ConsumeOptions.Create.min_backoff", create.GetMinBackoff(), 0, maxMinBackoff),
		checkSetting("ConsumeOptions.Create.max_backoff", create.GetMaxBackoff(), least, maxMaxBackoff),
	)
}

func checkStart(start *ordergatev1.SubscriptionPosition) error {
	switch position := start.GetPosition().(type) {
	case *ordergatev1.SubscriptionPosition_ResumeToken:
		return checkToken("ConsumeOptions.Start.resume_token", position.ResumeToken)
	case *ordergatev1.SubscriptionPosition_Time:
		if err := position.Time.CheckValid(); err != nil {
			return fmt.Errorf("ConsumeOptions.Start.time is invalid: %w", err)
		}
	}
	return nil
}

// checkFilter bounds the size of a filter. The gateway checks its values.
func checkFilter(option string, filter *ordergatev1.OrderEventFilter) error {
	for _, condition := range []struct {
		name string
		n    int
	}{
		{"kinds", len(filter.GetKinds())},
		{"directives", len(filter.GetDirectives())},
		{"order_ids", len(filter.GetOrderIds())},
		{"accounts", len(filter.GetAccounts())},
		{"ship_to_countries", len(filter.GetShipToCountries())},
		{"metadata", len(filter.GetMetadata())},
	} {
		if condition.n > maxFilterValues {
			return fmt.Errorf("%s.%s has %d values, want %d at most", option, condition.name, condition.n, maxFilterValues)
		}
	}
	return nil
}
