package grpcapi

import (
	"context"
	"encoding/base64"
	"errors"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/subscription"
)

const (
	minAckDeadline = time.Second
	maxAckDeadline = 10 * time.Minute
	maxMinBackoff  = time.Hour
	maxMaxBackoff  = 24 * time.Hour
	maxRetryDelay  = 24 * time.Hour
	maxAttempts    = 1000
	// maxSettlements is how many deliveries one message may settle.
	maxSettlements = 1000
	maxClientID    = 128

	defaultPullEvents = 10
	maxPullEvents     = 1000
	maxPullBytes      = 1 << 20
	maxPullWait       = time.Minute
	// pullPatience is for how much longer a pull waits while the log is read.
	pullPatience = 5 * time.Second
)

var clientIDShape = regexp.MustCompile(`^[ -~]*$`)

// subscriptionService implements ordergate.v1.SubscriptionService.
type subscriptionService struct {
	ordergatev1.UnimplementedSubscriptionServiceServer
	log           *eventlog.Log
	subscriptions *subscription.Manager
	peers         Peers // nil where none has another part of the subscriptions, or this is for them
	drains        *drains
	measures      *measures
	logger        *slog.Logger
}

func (s *subscriptionService) CreateSubscription(ctx context.Context, request *ordergatev1.CreateSubscriptionRequest) (*ordergatev1.CreateSubscriptionResponse, error) {
	created, err := s.create(ctx, request.GetSubscription(), request.GetStart(), "start")
	if err != nil {
		return nil, err
	}
	described, err := created.Describe(ctx)
	if err != nil {
		return nil, err
	}
	return &ordergatev1.CreateSubscriptionResponse{Subscription: described, Warnings: s.warn(described)}, nil
}

func (s *subscriptionService) create(ctx context.Context, settings *ordergatev1.Subscription, start *ordergatev1.SubscriptionPosition, field string) (*subscription.Subscription, error) {
	if err := checkSettings(settings); err != nil {
		return nil, err
	}
	after, err := s.sequenceAt(ctx, start, field)
	if err != nil {
		return nil, err
	}
	return s.subscriptions.Create(ctx, settings, after)
}

// warn logs and returns the dangers of a subscription's filter.
func (s *subscriptionService) warn(settings *ordergatev1.Subscription) []string {
	warnings := filterWarnings(settings.GetFilter())
	for _, warning := range warnings {
		s.logger.Warn("subscription filter can hide a HOLD or CANCEL", "subscription", settings.GetName(), "hint", warning)
	}
	return warnings
}

// sequenceAt returns the sequence that a position is behind.
func (s *subscriptionService) sequenceAt(ctx context.Context, position *ordergatev1.SubscriptionPosition, field string) (uint64, error) {
	state, err := s.log.OrdersState(ctx)
	if err != nil {
		return 0, err
	}
	switch p := position.GetPosition().(type) {
	case *ordergatev1.SubscriptionPosition_ResumeToken:
		return resumeSoonAfter(ctx, s.log, p.ResumeToken, state)
	case *ordergatev1.SubscriptionPosition_Time:
		if err := p.Time.CheckValid(); err != nil {
			return 0, invalid(field+".time", "is not a time: %v", err)
		}
		return s.log.SequenceBefore(ctx, p.Time.AsTime())
	case *ordergatev1.SubscriptionPosition_Beginning:
		if p.Beginning {
			return state.First - 1, nil
		}
	}
	return state.Durable, nil
}

func (s *subscriptionService) GetSubscription(ctx context.Context, request *ordergatev1.GetSubscriptionRequest) (*ordergatev1.GetSubscriptionResponse, error) {
	described, err := s.describe(ctx, request.GetSubscription())
	if err != nil {
		return nil, err
	}
	return &ordergatev1.GetSubscriptionResponse{Subscription: described}, nil
}

func (s *subscriptionService) describe(ctx context.Context, name string) (*ordergatev1.Subscription, error) {
	opened, err := s.open(ctx, name)
	if err != nil {
		return nil, err
	}
	return opened.Describe(ctx)
}

// describeAnywhere is describe also for what another gateway has.
func (s *subscriptionService) describeAnywhere(ctx context.Context, name string) (*ordergatev1.Subscription, error) {
	described, err := s.describe(ctx, name)
	member := otherGateway(err, s.peers)
	if member == "" {
		return described, err
	}
	response, err := passOn(ctx, s.peers, member, ordergatev1.SubscriptionService_GetSubscription_FullMethodName, &ordergatev1.GetSubscriptionRequest{Subscription: name})
	if err != nil {
		return nil, err
	}
	return response.(*ordergatev1.GetSubscriptionResponse).GetSubscription(), nil
}

func (s *subscriptionService) open(ctx context.Context, name string) (*subscription.Subscription, error) {
	if err := checkSubscriptionName("subscription", name); err != nil {
		return nil, err
	}
	return s.subscriptions.Open(ctx, name)
}

func (s *subscriptionService) ListSubscriptions(ctx context.Context, request *ordergatev1.ListSubscriptionsRequest) (*ordergatev1.ListSubscriptionsResponse, error) {
	pageSize, err := checkPageSize(request.GetPageSize())
	if err != nil {
		return nil, err
	}
	names, err := s.subscriptions.List(ctx)
	if err != nil {
		return nil, err
	}
	if token := request.GetPageToken(); token != "" {
		last, err := base64.RawURLEncoding.Strict().DecodeString(token)
		if err != nil || !subscription.ValidName(string(last)) {
			return nil, &invalidToken{reasonPageToken, "page_token", errTokenMalformed.Error()}
		}
		at, found := slices.BinarySearch(names, string(last))
		if found {
			at++
		}
		names = names[at:]
	}
	page := page[*ordergatev1.Subscription]{size: pageSize}
	for i, name := range names {
		if page.full() {
			return &ordergatev1.ListSubscriptionsResponse{Subscriptions: page.items, NextPageToken: base64.RawURLEncoding.EncodeToString([]byte(names[i-1]))}, nil
		}
		described, err := s.describeAnywhere(ctx, name)
		if errors.Is(err, subscription.ErrNotFound) || status.Code(err) == codes.NotFound {
			continue // deleted just now
		}
		if err != nil {
			return nil, err
		}
		page.add(described)
	}
	return &ordergatev1.ListSubscriptionsResponse{Subscriptions: page.items}, nil
}

func (s *subscriptionService) UpdateSubscription(ctx context.Context, request *ordergatev1.UpdateSubscriptionRequest) (*ordergatev1.UpdateSubscriptionResponse, error) {
	wanted := request.GetSubscription()
	if err := checkSubscriptionName("subscription.name", wanted.GetName()); err != nil {
		return nil, err
	}
	updated, err := s.subscriptions.Update(ctx, wanted.GetName(), func(settings *ordergatev1.Subscription) (*ordergatev1.Subscription, error) {
		if err := merge(settings, wanted, request.GetUpdateMask().GetPaths()); err != nil {
			return nil, err
		}
		return settings, checkSettings(settings)
	})
	if err != nil {
		return nil, err
	}
	described, err := updated.Describe(ctx)
	if err != nil {
		return nil, err
	}
	return &ordergatev1.UpdateSubscriptionResponse{Subscription: described, Warnings: s.warn(described)}, nil
}

// merge sets those settings that paths name, or, if it names none, those that are
// set.
func merge(settings, wanted *ordergatev1.Subscription, paths []string) error {
	all := len(paths) == 0
	names := make([]string, len(paths))
	named := func(path string, set bool) bool { return all && set || slices.Contains(names, path) }
	for i, path := range paths {
		// A REST client's mask names what is within the filter.
		names[i], _, _ = strings.Cut(path, ".")
		if !slices.Contains([]string{"filter", "ack_deadline", "max_attempts", "min_backoff", "max_backoff", "dead_letter_policy", "delivery"}, names[i]) {
			return invalid("update_mask", "%.60q cannot be changed: name filter, ack_deadline, max_attempts, min_backoff, max_backoff, dead_letter_policy or delivery", path)
		}
	}
	if named("filter", wanted.Filter != nil) {
		settings.Filter = wanted.Filter
	}
	if named("ack_deadline", wanted.AckDeadline != nil) {
		settings.AckDeadline = wanted.AckDeadline
	}
	if named("max_attempts", wanted.MaxAttempts != 0) {
		settings.MaxAttempts = wanted.MaxAttempts
	}
	if named("min_backoff", wanted.MinBackoff != nil) {
		settings.MinBackoff = wanted.MinBackoff
	}
	if named("max_backoff", wanted.MaxBackoff != nil) {
		settings.MaxBackoff = wanted.MaxBackoff
	}
	if named("dead_letter_policy", wanted.DeadLetterPolicy != ordergatev1.DeadLetterPolicy_DEAD_LETTER_POLICY_UNSPECIFIED) {
		settings.DeadLetterPolicy = wanted.DeadLetterPolicy
	}
	if named("delivery", wanted.Delivery != ordergatev1.DeliveryMode_DELIVERY_MODE_UNSPECIFIED) {
		settings.Delivery = wanted.Delivery
	}
	return nil
}

func (s *subscriptionService) DeleteSubscription(ctx context.Context, request *ordergatev1.DeleteSubscriptionRequest) (*ordergatev1.DeleteSubscriptionResponse, error) {
	if err := checkSubscriptionName("subscription", request.GetSubscription()); err != nil {
		return nil, err
	}
	if err := s.subscriptions.Delete(ctx, request.GetSubscription()); err != nil {
		return nil, err
	}
	return &ordergatev1.DeleteSubscriptionResponse{}, nil
}

func (s *subscriptionService) SeekSubscription(ctx context.Context, request *ordergatev1.SeekSubscriptionRequest) (*ordergatev1.SeekSubscriptionResponse, error) {
	opened, err := s.open(ctx, request.GetSubscription())
	if err != nil {
		return nil, err
	}
	if request.GetPosition().GetPosition() == nil {
		return nil, invalid("position", "is required: beginning, end, time or resume_token")
	}
	after, err := s.sequenceAt(ctx, request.GetPosition(), "position")
	if err != nil {
		return nil, err
	}
	if err := opened.Seek(ctx, after); err != nil {
		return nil, err
	}
	described, err := opened.Describe(ctx)
	if err != nil {
		return nil, err
	}
	return &ordergatev1.SeekSubscriptionResponse{Subscription: described}, nil
}

func (s *subscriptionService) Pull(ctx context.Context, request *ordergatev1.PullRequest) (*ordergatev1.PullResponse, error) {
	opened, err := s.open(ctx, request.GetSubscription())
	if err != nil {
		return nil, err
	}
	maxEvents := int(request.GetMaxEvents())
	if maxEvents == 0 {
		maxEvents = defaultPullEvents
	}
	err = errors.Join(
		checkRange("max_events", maxEvents, 1, maxPullEvents),
		checkDuration("wait", request.GetWait(), 0, maxPullWait),
		checkClientID("client_id", request.GetClientId()),
		checkDuration("ack_deadline", request.GetAckDeadline(), minAckDeadline, maxAckDeadline),
	)
	if err != nil {
		return nil, err
	}
	worker, err := opened.Attach(subscription.WorkerConfig{
		ClientID: request.GetClientId(), MaxEvents: maxWindowEvents, MaxBytes: maxWindowBytes,
		AckDeadline: request.GetAckDeadline().AsDuration(), Limit: maxEvents, LimitBytes: maxPullBytes,
	})
	if err != nil {
		return nil, err
	}
	defer worker.Detach()
	waited := time.NewTimer(request.GetWait().AsDuration())
	defer waited.Stop()
	for over := false; ; {
		// Asked first: what comes between the two questions is then in hand.
		nothing := over && opened.CaughtUp()
		var ready []*ordergatev1.Delivery
		taken := worker.Take()
		for _, delivery := range opened.Current(ctx, taken) {
			if message := encodeDelivery(opened, delivery); message != nil {
				ready = append(ready, message)
			}
		}
		s.measures.pulled.Add(float64(len(ready)))
		if len(ready) > 0 || nothing && len(taken) == 0 {
			return &ordergatev1.PullResponse{Deliveries: ready}, nil
		}
		select {
		case <-worker.Signal():
		case <-waited.C:
			if over {
				return &ordergatev1.PullResponse{}, nil
			}
			over = true
			waited.Reset(pullPatience)
		case <-opened.Ended():
			return nil, opened.Err()
		case <-s.drains.draining.Done():
			return nil, errShuttingDown
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (s *subscriptionService) Acknowledge(ctx context.Context, request *ordergatev1.AcknowledgeRequest) (*ordergatev1.AcknowledgeResponse, error) {
	opened, err := s.open(ctx, request.GetSubscription())
	if err != nil {
		return nil, err
	}
	n := len(request.GetDeliveryIds()) + len(request.GetNacks())
	if n == 0 {
		return nil, invalid("delivery_ids", "is required: the deliveries to settle, in delivery_ids or nacks")
	}
	if err := errors.Join(checkSettlements("delivery_ids", n), checkNacks("nacks", request.GetNacks())); err != nil {
		return nil, err
	}
	results, err := results(ctx, opened.Settle(request.GetDeliveryIds(), request.GetNacks(), nil))
	if err != nil {
		return nil, err
	}
	return &ordergatev1.AcknowledgeResponse{Results: results}, nil
}

func results(ctx context.Context, settlement *subscription.Settlement) ([]*ordergatev1.DeliveryResult, error) {
	select {
	case <-settlement.Stored():
		return settlement.Results(), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *subscriptionService) ModifyAckDeadline(ctx context.Context, request *ordergatev1.ModifyAckDeadlineRequest) (*ordergatev1.ModifyAckDeadlineResponse, error) {
	opened, err := s.open(ctx, request.GetSubscription())
	if err != nil {
		return nil, err
	}
	if len(request.GetDeliveryIds()) == 0 {
		return nil, invalid("delivery_ids", "is required: the deliveries whose leases are to change")
	}
	deadline := request.GetAckDeadline()
	if deadline == nil {
		deadline = opened.Settings().GetAckDeadline()
	}
	if deadline.AsDuration() != 0 {
		err = checkDuration("ack_deadline", deadline, minAckDeadline, maxAckDeadline)
	}
	if err := errors.Join(checkSettlements("delivery_ids", len(request.GetDeliveryIds())), err); err != nil {
		return nil, err
	}
	var extensions []*ordergatev1.Extension
	for _, id := range request.GetDeliveryIds() {
		extensions = append(extensions, &ordergatev1.Extension{DeliveryId: id, AckDeadline: deadline})
	}
	results, err := results(ctx, opened.Settle(nil, nil, extensions))
	if err != nil {
		return nil, err
	}
	return &ordergatev1.ModifyAckDeadlineResponse{Results: results}, nil
}

func (s *subscriptionService) ListDeadLetters(ctx context.Context, request *ordergatev1.ListDeadLettersRequest) (*ordergatev1.ListDeadLettersResponse, error) {
	opened, err := s.open(ctx, request.GetSubscription())
	if err != nil {
		return nil, err
	}
	pageSize, err := checkPageSize(request.GetPageSize())
	if err != nil {
		return nil, err
	}
	state, err := s.log.OrdersState(ctx)
	if err != nil {
		return nil, err
	}
	var after uint64
	if err := decodePageToken(request.GetPageToken(), deadLetterPageToken, state.LogID, &after); err != nil {
		return nil, err
	}
	letters := opened.DeadLetters(after, pageSize+1)
	response := &ordergatev1.ListDeadLettersResponse{DeadLetters: letters}
	if len(letters) > pageSize {
		response.DeadLetters = letters[:pageSize]
		response.NextPageToken = encodeToken(deadLetterPageToken, state.LogID, uint64(letters[pageSize-1].GetSequence()))
	}
	return response, nil
}

func (s *subscriptionService) RedriveDeadLetters(ctx context.Context, request *ordergatev1.RedriveDeadLettersRequest) (*ordergatev1.RedriveDeadLettersResponse, error) {
	opened, err := s.openFor(ctx, request)
	if err != nil {
		return nil, err
	}
	redriven, err := opened.Redrive(ctx, request.GetEventIds(), request.GetAll())
	if err != nil {
		return nil, err
	}
	return &ordergatev1.RedriveDeadLettersResponse{Redriven: int32(redriven)}, nil
}

func (s *subscriptionService) DiscardDeadLetters(ctx context.Context, request *ordergatev1.DiscardDeadLettersRequest) (*ordergatev1.DiscardDeadLettersResponse, error) {
	opened, err := s.openFor(ctx, request)
	if err != nil {
		return nil, err
	}
	discarded, err := opened.Discard(ctx, request.GetEventIds(), request.GetAll())
	if err != nil {
		return nil, err
	}
	return &ordergatev1.DiscardDeadLettersResponse{Discarded: int32(discarded)}, nil
}

// openFor opens the subscription whose dead letters a request chooses, in exactly
// one way.
func (s *subscriptionService) openFor(ctx context.Context, request interface {
	GetSubscription() string
	GetEventIds() []string
	GetAll() bool
}) (*subscription.Subscription, error) {
	if request.GetAll() == (len(request.GetEventIds()) > 0) {
		return nil, invalid("event_ids", "say which dead letters: give either event_ids, or all")
	}
	if err := checkSettlements("event_ids", len(request.GetEventIds())); err != nil {
		return nil, err
	}
	return s.open(ctx, request.GetSubscription())
}

func checkSubscriptionName(field, name string) error {
	switch {
	case name == "":
		return invalid(field, "is required: the name of a subscription, such as shipping")
	case !subscription.ValidName(name):
		return invalid(field, "%.70q is not the name of a subscription: 1 to 63 lower-case letters, digits and hyphens, with a letter first and no hyphen last", name)
	}
	return nil
}

// checkSettings reports all that is wrong with settings.
func checkSettings(settings *ordergatev1.Subscription) error {
	err := errors.Join(
		checkSubscriptionName("subscription.name", settings.GetName()),
		within("subscription", checkEventFilter(settings.GetFilter())),
		checkDuration("subscription.ack_deadline", settings.GetAckDeadline(), minAckDeadline, maxAckDeadline),
		checkRange("subscription.max_attempts", int(settings.GetMaxAttempts()), 0, maxAttempts),
		checkDuration("subscription.min_backoff", settings.GetMinBackoff(), 0, maxMinBackoff),
		checkDuration("subscription.max_backoff", settings.GetMaxBackoff(), settings.GetMinBackoff().AsDuration(), maxMaxBackoff),
	)
	if _, known := ordergatev1.DeadLetterPolicy_name[int32(settings.GetDeadLetterPolicy())]; !known {
		err = errors.Join(err, invalid("subscription.dead_letter_policy", "%v is not a policy: BLOCK or SKIP", settings.GetDeadLetterPolicy()))
	}
	if _, known := ordergatev1.DeliveryMode_name[int32(settings.GetDelivery())]; !known {
		err = errors.Join(err, invalid("subscription.delivery", "%v is not a delivery mode: LATEST or EVERY_EVENT", settings.GetDelivery()))
	}
	return err
}

// within puts the field of an error into a message that has it.
func within(message string, err error) error {
	var field *invalidField
	if errors.As(err, &field) {
		return &invalidField{message + "." + field.field, field.description}
	}
	return err
}

func checkRange(field string, value, least, most int) error {
	if value < least || value > most {
		return invalid(field, "is %d: want %d to %d", value, least, most)
	}
	return nil
}

// checkDuration checks a duration, if it is set.
func checkDuration(field string, value *durationpb.Duration, least, most time.Duration) error {
	if value == nil {
		return nil
	}
	if err := value.CheckValid(); err != nil {
		return invalid(field, "is not a duration: %v", err)
	}
	if d := value.AsDuration(); d < least || d > most {
		return invalid(field, "is %v: want %v to %v", d, least, most)
	}
	return nil
}

func checkClientID(field, id string) error {
	if len(id) > maxClientID || !clientIDShape.MatchString(id) {
		return invalid(field, "is no client id: up to %d printable ASCII characters, such as a host name", maxClientID)
	}
	return nil
}

func checkSettlements(field string, n int) error {
	if n > maxSettlements {
		return invalid(field, "has %d in all, at most %d: call several times", n, maxSettlements)
	}
	return nil
}

func checkNacks(field string, nacks []*ordergatev1.Nack) error {
	for _, nack := range nacks {
		if _, known := ordergatev1.NackAction_name[int32(nack.GetAction())]; !known {
			return invalid(field+".action", "%v is not an action: RETRY, SKIP or DEAD_LETTER", nack.GetAction())
		}
		if n := utf8.RuneCountInString(nack.GetReason()); n > maxReason {
			return invalid(field+".reason", "has %d characters, at most %d", n, maxReason)
		}
		if err := checkDuration(field+".delay", nack.GetDelay(), 0, maxRetryDelay); err != nil {
			return err
		}
	}
	return nil
}
