package eventlog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// headerOrder holds what filters and a metric need, so that these decode no payload:
// kind, livemode, directive, country, account and previous directive. It is one
// header, because each costs a microsecond at every step.
const headerOrder = "Ordergate-Order"

// readBytes bounds the payloads of one read, give or take one event, and maxReads
// how many reads are under way at a time.
const (
	readBytes = 1 << 20
	maxReads  = 16
)

// listWindow is how many events NewestOrders looks at in one call. The engine
// answers for at most 1,024 subjects at once.
const listWindow = 500

// scanBatch is how many events ScanOrders reads at a time.
const scanBatch = 500

// The numbers of fields of OrderEvent.
const (
	eventIDField    = 1
	sequenceField   = 4
	createTimeField = 6
)

// maxOrderBytes is the largest order event, whatever the configuration: a gRPC client takes
// messages of 4 MiB by default.
const maxOrderBytes = 7 << 19

// placeBytes is the room for where and when an event is stored, and for a token.
const placeBytes = 128

func orderSubject(orderID string) string { return "orders." + orderID }

// ValidOrderID reports whether an id can be the id of an order.
func ValidOrderID(id string) bool { return subjectID(id) }

// OrderRecord is an order event as it is stored.
type OrderRecord struct {
	// Sequence is the event's place in ORDERS.
	Sequence uint64
	// Time is when the event was stored, in UTC.
	Time time.Time
	// OrderID is the order the event is about.
	OrderID string
	// Kind is what happened.
	Kind ordergatev1.OrderEventKind
	// Livemode is false for test orders.
	Livemode bool
	// Account is the connected account; empty for the platform's own.
	Account string
	// Country is the country of the ship-to address; empty when there is none.
	Country string
	// Directive is what to do with the order.
	Directive ordergatev1.Directive
	// PreviousDirective is the order's directive before the event. Unspecified for the
	// first event of an order, and for events stored by versions that did not record it.
	PreviousDirective ordergatev1.Directive

	storedTrace
	payload []byte
	shared  atomic.Value
}

// Event decodes the event. Its sequence and create_time come from where and
// when it was stored.
func (r *OrderRecord) Event() (*ordergatev1.OrderEvent, error) {
	event := &ordergatev1.OrderEvent{}
	if err := proto.Unmarshal(r.payload, event); err != nil {
		return nil, fmt.Errorf("decode the order event %d: %w", r.Sequence, err)
	}
	event.Sequence = int64(r.Sequence)
	event.CreateTime = timestamppb.New(r.Time)
	return event, nil
}

// ToShip reports whether the order is to be shipped.
func (r *OrderRecord) ToShip() bool { return r.Directive == ordergatev1.Directive_DIRECTIVE_SHIP }

// Wire returns the event as it is sent, in two parts: what is stored, which nobody
// may change, and behind it where and when that is. It does not decode more than
// it must to see that what is stored can be an event.
func (r *OrderRecord) Wire() (stored, place []byte, err error) {
	for b := r.payload; len(b) > 0; {
		_, _, length := protowire.ConsumeField(b)
		if length < 0 {
			return nil, nil, fmt.Errorf("decode the order event %d: %w", r.Sequence, protowire.ParseError(length))
		}
		b = b[length:]
	}
	place = protowire.AppendTag(make([]byte, 0, placeBytes), sequenceField, protowire.VarintType)
	place = protowire.AppendVarint(place, r.Sequence)
	place = protowire.AppendTag(place, createTimeField, protowire.BytesType)
	at := timestamppb.New(r.Time)
	place = protowire.AppendVarint(place, uint64(proto.Size(at)))
	place, err = proto.MarshalOptions{}.MarshalAppend(place, at)
	return r.payload, place, err
}

// Shared returns what encode made of the event when it was asked first: those who read an
// event at the same time share it. encode must not depend on who reads.
func (r *OrderRecord) Shared(encode func() (any, error)) (any, error) {
	if encoded := r.shared.Load(); encoded != nil {
		return encoded, nil
	}
	encoded, err := encode()
	if err == nil {
		r.shared.Store(encoded)
	}
	return encoded, err
}

// Size is the size of the event as it is stored, in bytes.
func (r *OrderRecord) Size() int { return len(r.payload) }

// EventID is the event's id, read without decoding the rest; empty when it cannot
// be read.
func (r *OrderRecord) EventID() string {
	for b := r.payload; len(b) > 0; {
		field, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return ""
		}
		b = b[n:]
		if field == eventIDField && kind == protowire.BytesType {
			id, _ := protowire.ConsumeString(b)
			return id
		}
		if n = protowire.ConsumeFieldValue(field, kind, b); n < 0 {
			return ""
		}
		b = b[n:]
	}
	return ""
}

// Revision is the order's revision after the event, read from the event's id; 0 if
// the id cannot be read.
func (r *OrderRecord) Revision() int64 {
	revision, err := strconv.ParseInt(strings.TrimPrefix(r.EventID(), r.OrderID+"."), 10, 64)
	if err != nil {
		return 0
	}
	return revision
}

// Matches reports whether a filter selects the event. It decodes the event only
// for a filter of metadata, and only then can it fail.
func (r *OrderRecord) Matches(filter *ordergatev1.OrderEventFilter) (bool, error) {
	if !anyOrIn(filter.GetKinds(), r.Kind) || filter.GetDirectiveChangedOnly() && r.Directive == r.PreviousDirective {
		return false, nil
	}
	return r.MatchesOrder(filter)
}

// MatchesOrder reports whether the conditions of a filter on the order itself, which
// are all but those on the change (kinds and directive_changed_only), hold after the
// event. It fails as Matches does. A tombstone has lost its order's country and
// metadata; it matches any, because subscribers that had the order by these must
// learn of the erasure.
func (r *OrderRecord) MatchesOrder(filter *ordergatev1.OrderEventFilter) (bool, error) {
	if filter == nil {
		return true, nil
	}
	erased := r.Kind == ordergatev1.OrderEventKind_ORDER_EVENT_KIND_ERASED
	beside := (filter.Livemode == nil || filter.GetLivemode() == r.Livemode) &&
		anyOrIn(filter.GetDirectives(), r.Directive) &&
		anyOrIn(filter.GetOrderIds(), r.OrderID) &&
		anyOrIn(filter.GetAccounts(), r.Account) &&
		(erased || anyOrIn(filter.GetShipToCountries(), r.Country))
	if !beside || erased || len(filter.GetMetadata()) == 0 {
		return beside, nil
	}
	event, err := r.Event()
	if err != nil {
		return false, err
	}
	metadata := event.GetOrder().GetMetadata()
	for key, want := range filter.GetMetadata() {
		if value, has := metadata[key]; !has || value != want {
			return false, nil
		}
	}
	return true, nil
}

// anyOrIn reports whether value is selected: an empty selection selects all.
func anyOrIn[T comparable](selection []T, value T) bool {
	return len(selection) == 0 || slices.Contains(selection, value)
}

// AppendOrder writes the event of an order whose newest event has the sequence
// previous; 0 for a new order. It returns the new sequence once the event is
// written, not yet flushed. It fails with ErrConflict when the order has
// another newest event, and with ErrTooLarge if it exceeds the largest size; after ErrUnavailable the event may or may not be
// written: read the order again.
func (l *Log) AppendOrder(ctx context.Context, event *ordergatev1.OrderEvent, previous uint64) (uint64, error) {
	order := event.GetOrder()
	if !ValidOrderID(order.GetId()) {
		return 0, fmt.Errorf("order id %.40q cannot be stored", order.GetId())
	}
	payload, err := proto.Marshal(event)
	if err != nil {
		return 0, fmt.Errorf("encode the order event: %w", err)
	}
	if limit := min(l.cfg.MaxEventBytes+orderBytes, maxOrderBytes); len(payload) > limit {
		return 0, fmt.Errorf("%w: order %s has %d bytes, the limit is %d", ErrTooLarge, order.GetId(), len(payload), limit)
	}
	e, err := l.current()
	if err != nil {
		return 0, err
	}
	msg := &nats.Msg{Subject: orderSubject(order.GetId()), Data: payload, Header: nats.Header{
		headerOrder: {encodeHeader(event)},

		jetstream.ExpectedLastSubjSeqHeader: {strconv.FormatUint(previous, 10)},
	}}
	putTrace(ctx, msg.Header)
	sequence, err := e.write(ctx, ordersStream, msg)
	if err != nil {
		return 0, e.orderError(err)
	}
	return sequence, nil
}

func (e *engine) orderError(err error) error {
	if refusedFor(err, server.JSStreamWrongLastSequenceErrF, server.JSStreamWrongLastSequenceConstantErr) {
		return fmt.Errorf("%w: %w", ErrConflict, err)
	}
	return e.writeError(err)
}

// Flush returns once everything that was written before the call is on disk,
// and with that visible to readers.
func (l *Log) Flush(ctx context.Context) error {
	e, err := l.current()
	if err != nil {
		return err
	}
	return e.flushAndShow(ctx, e.newestWritten())
}

// NewestOrder returns the newest event of an order, flushed or not, for the
// writer that goes on from it. ErrNotFound when there is none.
func (l *Log) NewestOrder(ctx context.Context, orderID string) (*OrderRecord, error) {
	e, err := l.current()
	if err != nil {
		return nil, err
	}
	return e.newestOrder(ctx, orderID)
}

// DurableOrder returns the newest event of an order, for readers: it waits
// until the event is on disk. ErrNotFound when there is none.
func (l *Log) DurableOrder(ctx context.Context, orderID string) (*OrderRecord, error) {
	e, err := l.current()
	if err != nil {
		return nil, err
	}
	record, err := e.newestOrder(ctx, orderID)
	if err != nil {
		return nil, err
	}
	if frontier, _ := e.durable(); record.Sequence > frontier {
		if err := e.flushAndShow(ctx, record.Sequence); err != nil {
			return nil, err
		}
	}
	return record, nil
}

// NewestAfter returns the newest durable event of an order if it was stored after a
// sequence; nil otherwise. It is answered from memory if the newest events
// reach back to the sequence. fromLeader has the leader of a cluster answer, which
// knows of events that other gateways stored a moment ago.
func (l *Log) NewestAfter(ctx context.Context, orderID string, after uint64, fromLeader bool) (*OrderRecord, error) {
	e, err := l.current()
	if err != nil {
		return nil, err
	}
	if !fromLeader || !e.shared {
		frontier, _ := e.durable()
		if r, ok := e.tail.newestAfter(orderID, after, frontier); ok && (r == nil || r.Sequence <= frontier) {
			return r, nil
		}
	}
	r, err := l.DurableOrder(ctx, orderID)
	if errors.Is(err, ErrNotFound) || err == nil && r.Sequence <= after {
		return nil, nil
	}
	return r, err
}

func (e *engine) newestOrder(ctx context.Context, orderID string) (*OrderRecord, error) {
	if !ValidOrderID(orderID) {
		return nil, fmt.Errorf("order %.40q: %w", orderID, ErrNotFound)
	}
	msg, err := e.last(ctx, e.orders, orderSubject(orderID))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, fmt.Errorf("order %s: %w", orderID, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: read order %s: %w", ErrUnavailable, orderID, err)
	}
	// What can be read has been written, even if its writer never heard so: the
	// next flush makes it visible.
	e.wroteTo(ordersStream, msg.Sequence)
	return orderRecord(msg.Subject, msg.Sequence, msg.Time, msg.Header, msg.Data), nil
}

func orderRecord(subject string, sequence uint64, stored time.Time, header nats.Header, payload []byte) *OrderRecord {
	r := &OrderRecord{
		Sequence: sequence,
		Time:     stored.UTC(),
		OrderID:  subject[len(orderSubject("")):],

		storedTrace: traceOf(header),
		payload:     payload,
	}
	r.decodeHeader(header.Get(headerOrder))
	return r
}

func encodeHeader(event *ordergatev1.OrderEvent) string {
	order := event.GetOrder()
	return strings.Join([]string{
		strconv.Itoa(int(event.GetKind())), strconv.FormatBool(order.GetLivemode()), strconv.Itoa(int(order.GetDirective())),
		url.QueryEscape(order.GetShipping().GetAddress().GetCountry()), url.QueryEscape(order.GetAccount()),
		strconv.Itoa(int(event.GetPreviousDirective())),
	}, ",")
}

// decodeHeader reads what encodeHeader wrote.
func (r *OrderRecord) decodeHeader(header string) {
	kind, rest, _ := strings.Cut(header, ",")
	livemode, rest, _ := strings.Cut(rest, ",")
	directive, rest, _ := strings.Cut(rest, ",")
	country, rest, _ := strings.Cut(rest, ",")
	account, rest, _ := strings.Cut(rest, ",")
	previous, _, _ := strings.Cut(rest, ",") // later versions may have more
	number := func(text string) int32 {
		n, _ := strconv.ParseInt(text, 10, 32)
		return int32(n)
	}
	r.Kind, r.Livemode, r.Directive = ordergatev1.OrderEventKind(number(kind)), livemode == "true", ordergatev1.Directive(number(directive))
	r.Country, _ = url.QueryUnescape(country)
	r.Account, _ = url.QueryUnescape(account)
	r.PreviousDirective = ordergatev1.Directive(number(previous))
}

// KeepOrders keeps order events for at least so long, and no longer than that and
// what is configured.
func (l *Log) KeepOrders(ctx context.Context, atLeast time.Duration) error {
	e, err := l.current()
	if err != nil {
		return err
	}
	if l.cfg.OrdersMaxAge == 0 || e.keepsAll.Load() { // for good
		return nil
	}
	info, err := e.ordersInfo(ctx)
	if err != nil {
		return err
	}
	cfg := info.Config
	if cfg.MaxAge = max(l.cfg.OrdersMaxAge, atLeast); cfg.MaxAge == info.Config.MaxAge {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if _, err := e.js.UpdateStream(ctx, cfg); err != nil {
		return e.writeError(err)
	}
	return nil
}

// OrdersState is where the stream of order events stands.
type OrdersState struct {
	// LogID identifies the stream for as long as it lives, wherever it moves.
	LogID string
	// First is the oldest sequence that is kept; one above Durable when the
	// stream is empty.
	First uint64
	// Durable is the newest sequence that readers may see.
	Durable uint64
	// MaxAge is how long events are kept; 0 is for good.
	MaxAge time.Duration
}

// OrdersState returns where the stream of order events stands.
func (l *Log) OrdersState(ctx context.Context) (OrdersState, error) {
	e, err := l.current()
	if err != nil {
		return OrdersState{}, err
	}
	info, err := e.ordersInfo(ctx)
	if err != nil {
		return OrdersState{}, err
	}
	durable, _ := e.durable()
	return OrdersState{LogID: e.id, First: max(info.State.FirstSeq, 1), Durable: durable, MaxAge: info.Config.MaxAge}, nil
}

func (e *engine) ordersInfo(ctx context.Context) (*jetstream.StreamInfo, error) {
	return streamInfo(ctx, e.orders)
}

func streamInfo(ctx context.Context, stream jetstream.Stream) (*jetstream.StreamInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	info, err := stream.Info(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return info, nil
}

func (e *engine) firstOrder(ctx context.Context) (uint64, error) {
	info, err := e.ordersInfo(ctx)
	if err != nil {
		return 0, err
	}
	return max(info.State.FirstSeq, 1), nil
}

// AwaitOrders blocks until there are durable events behind the sequence after.
// A log that is being reopened it waits for.
func (l *Log) AwaitOrders(ctx context.Context, after uint64) error {
	for {
		if _, err := l.await(ctx); err != nil {
			return err
		}
		durable, moved := l.Frontier()
		if durable > after {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-moved:
		}
	}
}

// CatchUp waits for a moment until readers may see a sequence that another gateway has
// shown, where several share the log. That they cannot is no error.
func (l *Log) CatchUp(ctx context.Context, sequence uint64) error {
	if durable, _ := l.Frontier(); !l.Shared() || sequence <= durable {
		return nil
	}
	waiting, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	if err := l.AwaitOrders(waiting, sequence-1); err != nil && waiting.Err() == nil {
		return err
	}
	return ctx.Err()
}

// Frontier returns the newest sequence that readers may see, and a channel that
// is closed when that may have changed. It is 0 while the log is being reopened.
func (l *Log) Frontier() (durable uint64, moved <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.engine == nil || l.engine.dead.Err() != nil {
		return 0, l.changed
	}
	return l.engine.durable()
}

// ReadOrders returns durable events behind the sequence after, in their order,
// limit at most, and the sequence to read on from: everything up to it has been
// returned. It returns none when there are none. ErrExpired means that events
// behind after are no longer kept.
func (l *Log) ReadOrders(ctx context.Context, after uint64, limit int) (records []*OrderRecord, next uint64, err error) {
	e, err := l.current()
	if err != nil {
		return nil, 0, err
	}
	return e.readNewest(ctx, after, limit)
}

// readDurable is ReadOrders from the engine.
func (e *engine) readDurable(ctx context.Context, after uint64, limit int) (records []*OrderRecord, next uint64, err error) {
	frontier, _ := e.durable()
	if after >= frontier {
		return nil, after, nil
	}
	records, err = e.readOrders(ctx, limit, readFrom{sequence: after + 1})
	if err != nil {
		return nil, 0, err
	}
	if gap := len(records) == 0 || records[0].Sequence != after+1; gap {
		first, err := e.firstOrder(ctx)
		if err != nil {
			return nil, 0, err
		}
		if first > after+1 {
			return nil, 0, fmt.Errorf("%w: the oldest event is %d", ErrExpired, first)
		}
	}
	records, cut := cutBehind(records, frontier)
	if !cut && len(records) > 0 {
		return records, records[len(records)-1].Sequence, nil
	}
	return records, frontier, nil
}

// ScanOrders hands the durable events behind the sequence after, up to last, to
// each, in batches and in their order; next is the sequence up to which all were
// handed over. What is no longer kept it leaves out. It reads what is stored: from
// memory, events of an order that is being erased are gone already.
func (l *Log) ScanOrders(ctx context.Context, after, last uint64, each func(records []*OrderRecord, next uint64) error) error {
	for after < last {
		e, err := l.current()
		if err != nil {
			return err
		}
		records, next, err := e.readDurable(ctx, after, scanBatch)
		if errors.Is(err, ErrExpired) {
			state, err := l.OrdersState(ctx)
			if err != nil {
				return err
			}
			after = state.First - 1
			continue
		}
		if err != nil {
			return err
		}
		if err := each(slices.DeleteFunc(records, func(r *OrderRecord) bool { return r.Sequence > last }), min(next, last)); err != nil {
			return err
		}
		if next == after { // the log ends before last
			return nil
		}
		after = next
	}
	return nil
}

// cutBehind leaves the records up to the frontier, and says whether that was
// the end of what may be seen.
func cutBehind(records []*OrderRecord, frontier uint64) (visible []*OrderRecord, cut bool) {
	i := slices.IndexFunc(records, func(r *OrderRecord) bool { return r.Sequence > frontier })
	if i < 0 {
		return records, false
	}
	return records[:i], true
}

// SequenceBefore returns the sequence just before the first event that was
// stored at or after a time.
func (l *Log) SequenceBefore(ctx context.Context, at time.Time) (uint64, error) {
	e, err := l.current()
	if err != nil {
		return 0, err
	}
	frontier, _ := e.durable()
	records, err := e.readOrders(ctx, 1, readFrom{time: engineTime(at)})
	if err != nil {
		return 0, err
	}
	if len(records) == 0 {
		return frontier, nil
	}
	return min(frontier, records[0].Sequence-1), nil
}

// engineTime bounds a time to those that the engine can compare: it counts nanoseconds
// since 1970 in 64 bits, so that a time after 2262 would turn into one long ago.
func engineTime(at time.Time) time.Time {
	earliest, latest := time.Unix(0, 0), time.Unix(0, math.MaxInt64)
	switch {
	case at.Before(earliest):
		return earliest.UTC()
	case at.After(latest):
		return latest.UTC()
	}
	return at
}

// OrderEvents returns durable events of one order behind the sequence after,
// in their order: limit at most, fewer when they are large, and none when there
// are none.
func (l *Log) OrderEvents(ctx context.Context, orderID string, after uint64, limit int) ([]*OrderRecord, error) {
	if !ValidOrderID(orderID) {
		return nil, nil
	}
	e, err := l.current()
	if err != nil {
		return nil, err
	}
	frontier, _ := e.durable()
	records, err := e.readOrders(ctx, limit, readFrom{sequence: after + 1, subject: orderSubject(orderID)})
	if err != nil {
		return nil, err
	}
	records, _ = cutBehind(records, frontier)
	return records, nil
}

// NewestOrders lists orders as they were when the newest durable sequence was
// snapshot, each with its newest event, newest first, limit at most. It looks
// only at a bounded number of events below the sequence below, so that it may
// return few or none and still have more: next is the below to go on with, 0 at
// the end.
func (l *Log) NewestOrders(ctx context.Context, snapshot, below uint64, limit int) (records []*OrderRecord, next uint64, err error) {
	e, err := l.current()
	if err != nil {
		return nil, 0, err
	}
	first, err := e.firstOrder(ctx)
	if err != nil {
		return nil, 0, err
	}
	if below <= first {
		return nil, 0, nil
	}
	from := first
	if below-first > listWindow {
		from = below - listWindow
		next = from
	}
	candidates, err := e.newestInWindow(ctx, from, below)
	if err != nil {
		return nil, 0, err
	}
	if len(candidates) > limit {
		candidates = candidates[:limit]
		next = candidates[limit-1].sequence
	}
	records, err = e.withoutSuperseded(ctx, candidates, snapshot)
	return records, next, err
}

// candidate is an event that may be the newest of its order.
type candidate struct {
	sequence uint64
	orderID  string
}

// newestInWindow returns the newest event of each order among the sequences
// from up to, not including, below; newest first. It keeps no payloads.
func (e *engine) newestInWindow(ctx context.Context, from, below uint64) ([]candidate, error) {
	newest := map[string]uint64{}
	for from < below {
		records, err := e.readOrders(ctx, int(below-from), readFrom{sequence: from})
		if err != nil {
			return nil, err
		}
		records, _ = cutBehind(records, below-1)
		if len(records) == 0 {
			break
		}
		for _, r := range records {
			newest[r.OrderID] = r.Sequence
		}
		from = records[len(records)-1].Sequence + 1
	}
	candidates := make([]candidate, 0, len(newest))
	for id, sequence := range newest {
		candidates = append(candidates, candidate{sequence, id})
	}
	slices.SortFunc(candidates, func(a, b candidate) int { return cmp.Compare(b.sequence, a.sequence) })
	return candidates, nil
}

// withoutSuperseded returns those candidates, in their order, that were the
// newest event of their order at the time of snapshot.
func (e *engine) withoutSuperseded(ctx context.Context, candidates []candidate, snapshot uint64) ([]*OrderRecord, error) {
	if len(candidates) == 0 {
		return nil, nil
	}
	subjects, wanted := make([]string, len(candidates)), map[string]uint64{}
	for i, c := range candidates {
		subjects[i], wanted[c.orderID] = orderSubject(c.orderID), c.sequence
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	newest := map[string]*OrderRecord{}
	// The engine stops at a number of bytes: ask for the rest until none is left.
	for lagged := 0; len(subjects) > 0; {
		answers, err := jetstreamext.GetLastMsgsFor(ctx, e.js, ordersStream, subjects, jetstreamext.GetLastMsgsUpToSeq(snapshot))
		records, err := collect(ctx, answers, err, orderRecord)
		if err != nil {
			return nil, err
		}
		// What is older comes from a replica that lags.
		records = slices.DeleteFunc(records, func(r *OrderRecord) bool { return r.Sequence < wanted[r.OrderID] })
		if len(records) == 0 {
			if lagged++; !e.shared || lagged > lagPatience {
				break
			}
			if err := pauseFor(ctx, lagPause); err != nil {
				return nil, err
			}
		}
		for _, r := range records {
			newest[r.OrderID] = r
		}
		subjects = slices.DeleteFunc(subjects, func(subject string) bool { return newest[subject[len(orderSubject("")):]] != nil })
	}
	var records []*OrderRecord
	for _, c := range candidates {
		if r := newest[c.orderID]; r != nil && r.Sequence == c.sequence {
			records = append(records, r)
		}
	}
	return records, nil
}

// readOrders reads up to limit events, durable or not, and fewer when they are
// large; none means that there are none.
func (e *engine) readOrders(ctx context.Context, limit int, from readFrom) ([]*OrderRecord, error) {
	return readBatch(ctx, e, ordersStream, limit, orderRecord, from)
}

// readFrom is where a read begins: at a sequence, or else at the first message that was
// stored at or after a time.
type readFrom struct {
	sequence uint64
	subject  string // of the messages that are read; empty is all
	time     time.Time
}

func (p readFrom) options() []jetstreamext.GetBatchOpt {
	options := []jetstreamext.GetBatchOpt{jetstreamext.GetBatchMaxBytes(readBytes)}
	if p.sequence > 0 {
		options = append(options, jetstreamext.GetBatchSeq(p.sequence))
	} else {
		options = append(options, jetstreamext.GetBatchStartTime(clampTime(p.time)))
	}
	if p.subject != "" {
		options = append(options, jetstreamext.GetBatchSubject(p.subject))
	}
	return options
}

// clampTime returns the nearest time that the engine can compare. The engine counts nanoseconds since
// 1970 in 64 bits: for it, the year 9999 is in the past, and a start there would be the beginning.
func clampTime(t time.Time) time.Time {
	earliest, latest := time.Unix(0, 0), time.Unix(0, math.MaxInt64)
	switch {
	case t.Before(earliest):
		return earliest
	case t.After(latest):
		return latest
	}
	return t
}

// readBatch reads up to limit messages of a stream, fewer when they are large. Only
// so many are read at a time: what they bring waits in one connection's memory,
// which drops messages when it is too much.
func readBatch[T any](ctx context.Context, e *engine, stream string, limit int, decode decoder[T], from readFrom) ([]T, error) {
	if err := e.reads.Acquire(ctx, 1); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	defer e.reads.Release(1)
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	for {
		answers, err := jetstreamext.GetBatch(ctx, e.js, stream, limit, from.options()...)
		read, err := collect(ctx, answers, err, decode)
		switch {
		case err != nil || len(read) > 0 || !e.shared:
			return read, err
		case from.sequence > 0: // the replica that was asked may lag
			return readOfLeader(ctx, e, stream, decode, from)
		}
		if none, err := e.noneSince(ctx, stream, from.time); none || err != nil {
			return nil, err
		}
		if err := pauseFor(ctx, lagPause); err != nil {
			return nil, err
		}
	}
}

// decoder makes something of a stored message.
type decoder[T any] func(subject string, sequence uint64, stored time.Time, header nats.Header, data []byte) T

// collect reads the answers to a request of several messages. A request that
// timed out ends like one that was answered: only the context tells.
func collect[T any](ctx context.Context, answers iter.Seq2[*jetstream.RawStreamMsg, error], err error, decode decoder[T]) ([]T, error) {
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	var read []T
	for msg, err := range answers {
		if errors.Is(err, jetstreamext.ErrNoMessages) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		read = append(read, decode(msg.Subject, msg.Sequence, msg.Time, msg.Header, msg.Data))
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
	}
	return read, nil
}
