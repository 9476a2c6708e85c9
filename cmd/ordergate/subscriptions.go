package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/telemetry"
)

type subscriptionsCommands struct {
	Create subscriptionsCreateCommand `cmd:"" help:"Make a subscription."`
	List   subscriptionsListCommand   `cmd:"" help:"List subscriptions, and how they are doing."`
	Show   subscriptionsShowCommand   `cmd:"" help:"Show the settings, the figures and the workers of one subscription."`
	Update subscriptionsUpdateCommand `cmd:"" help:"Change settings of a subscription."`
	Seek   subscriptionsSeekCommand   `cmd:"" help:"Move a subscription to another place in the log."`
	Delete subscriptionsDeleteCommand `cmd:"" help:"Remove a subscription, its place and its dead letters."`
}

// subscriptionFlags are what a command about one subscription needs.
type subscriptionFlags struct {
	clientFlags `embed:""`
	Name        string `arg:"" help:"The subscription's name."`
}

// ask calls the gateway.
func (f *subscriptionFlags) ask(call func(ordergatev1.SubscriptionServiceClient) error) error {
	return f.call(func(conn *grpc.ClientConn) error { return call(ordergatev1.NewSubscriptionServiceClient(conn)) })
}

// answered is what the gateway answers that has a subscription in it.
type answered interface {
	GetSubscription() *ordergatev1.Subscription
}

// show calls the gateway, and prints the subscription that it answers with.
func (f *subscriptionFlags) show(c console, call func(ordergatev1.SubscriptionServiceClient) (answered, error)) error {
	return f.ask(func(client ordergatev1.SubscriptionServiceClient) error {
		response, err := call(client)
		if err != nil {
			return err
		}
		if warned, ok := response.(interface{ GetWarnings() []string }); ok {
			for _, warning := range warned.GetWarnings() {
				fmt.Fprintln(c.stderr, "warning: "+plain(warning))
			}
		}
		if f.JSON {
			return printJSON(c.stdout, response.GetSubscription())
		}
		return showSubscription(c.stdout, response.GetSubscription())
	})
}

// settingFlags are the settings of a subscription.
type settingFlags struct {
	filterFlags      `embed:""`
	AckDeadline      *time.Duration `name:"ack-deadline" placeholder:"DURATION" help:"How long a worker has for an event: 1s to 10m, 30s by default."`
	MaxAttempts      *int32         `name:"max-attempts" placeholder:"N" help:"After how many deliveries an event becomes a dead letter: 1 to 1000, 20 by default."`
	MinBackoff       *time.Duration `name:"min-backoff" placeholder:"DURATION" help:"How long an event waits after its first failed attempt, and twice as long after each further one: 0s to 1h, 1s by default."`
	MaxBackoff       *time.Duration `name:"max-backoff" placeholder:"DURATION" help:"What that waiting grows to: up to 24h, 10m by default."`
	DeadLetterPolicy *string        `name:"dead-letter-policy" placeholder:"block|skip" help:"What becomes of an order's later events when one becomes a dead letter: they wait for it (block, the default), or are delivered without it (skip)."`
	Delivery         *string        `name:"delivery" placeholder:"latest|every-event" help:"Which of an order's pending events are delivered: its newest revision in their place (latest, the default), or each of them (every-event)."`
}

// settings returns what was given, but for the filter, and the names of it.
func (s *settingFlags) settings(name string) (*ordergatev1.Subscription, []string, error) {
	subscription, given := &ordergatev1.Subscription{Name: name}, []string{}
	duration := func(name string, value *time.Duration, to **durationpb.Duration) {
		if value != nil {
			*to = durationpb.New(*value)
			given = append(given, name)
		}
	}
	duration("ack_deadline", s.AckDeadline, &subscription.AckDeadline)
	duration("min_backoff", s.MinBackoff, &subscription.MinBackoff)
	duration("max_backoff", s.MaxBackoff, &subscription.MaxBackoff)
	if s.MaxAttempts != nil {
		subscription.MaxAttempts = *s.MaxAttempts
		given = append(given, "max_attempts")
	}
	if s.DeadLetterPolicy != nil {
		policies, err := enumValues[ordergatev1.DeadLetterPolicy]("dead-letter-policy", []string{*s.DeadLetterPolicy})
		if err != nil {
			return nil, nil, err
		}
		subscription.DeadLetterPolicy = policies[0]
		given = append(given, "dead_letter_policy")
	}
	if s.Delivery != nil {
		modes, err := enumValues[ordergatev1.DeliveryMode]("delivery", []string{strings.ReplaceAll(*s.Delivery, "-", "_")})
		if err != nil {
			return nil, nil, err
		}
		subscription.Delivery = modes[0]
		given = append(given, "delivery")
	}
	return subscription, given, nil
}

type subscriptionsCreateCommand struct {
	subscriptionFlags `embed:""`
	startFlags        `embed:""`
	settingFlags      `embed:""`
}

// Help is the longer text of `ordergate subscriptions create --help`.
func (subscriptionsCreateCommand) Help() string {
	return `The gateway keeps the subscription's place: its workers are handed the events that none of them has acknowledged. It begins with events stored from now on, unless a start is given. A worker receives the newest revision of an order in place of all its pending events, unless --delivery every-event is given. The name is of lower-case letters, digits and hyphens.

Examples:
  ordergate subscriptions create shipping --live --directive SHIP,HOLD,CANCEL --directive-changes
  ordergate subscriptions create books --from-beginning --delivery every-event --max-attempts 5 --dead-letter-policy skip
  ordergate subscriptions create oslo --country NO --metadata depot=oslo --since 48h`
}

func (s *subscriptionsCreateCommand) Run(ctx context.Context, c console) error {
	subscription, _, err := s.settings(s.Name)
	if err != nil {
		return err
	}
	if subscription.Filter, err = s.filter(nil); err != nil {
		return err
	}
	return s.show(c, func(client ordergatev1.SubscriptionServiceClient) (answered, error) {
		return client.CreateSubscription(ctx, &ordergatev1.CreateSubscriptionRequest{Subscription: subscription, Start: s.position()})
	})
}

type subscriptionsListCommand struct {
	clientFlags `embed:""`
	Limit       int `name:"limit" default:"50" help:"How many at most; 0 for all."`
}

// Help is the longer text of `ordergate subscriptions list --help`.
func (subscriptionsListCommand) Help() string {
	return `BACKLOG is how many stored events the gateway has not looked at yet, whether they match the filter or not; PENDING, how many orders have an event that is ready, out, or waiting for another attempt; WORKERS, how many streams are open.

Examples:
  ordergate subscriptions list
  ordergate subscriptions list --limit 0 --json | jq -r 'select(.stats.deadLetters != "0") | .name'`
}

func (l *subscriptionsListCommand) Run(ctx context.Context, c console) error {
	table := newColumns(c.stdout)
	if !l.JSON {
		table.row("NAME", "BACKLOG", "PENDING", "OLDEST UNACKED", "DEAD LETTERS", "WORKERS", "FILTER")
	}
	print := func(s *ordergatev1.Subscription) error {
		if l.JSON {
			return printJSON(c.stdout, s)
		}
		stats, oldest := s.GetStats(), ""
		if at := stats.GetOldestUnackedTime(); at != nil {
			oldest = age(at.AsTime())
		}
		table.row(s.GetName(), strconv.FormatInt(stats.GetBacklog(), 10), strconv.FormatInt(stats.GetPendingOrders(), 10), oldest,
			strconv.FormatInt(stats.GetDeadLetters(), 10), strconv.Itoa(workers(stats)), filterBrief(s.GetFilter()))
		return nil
	}
	err := l.call(func(conn *grpc.ClientConn) error {
		client := ordergatev1.NewSubscriptionServiceClient(conn)
		return eachListed(l.Limit, c.stderr, print, func(size int32, token string) ([]*ordergatev1.Subscription, string, error) {
			page, err := client.ListSubscriptions(ctx, &ordergatev1.ListSubscriptionsRequest{PageSize: size, PageToken: token})
			return page.GetSubscriptions(), page.GetNextPageToken(), err
		})
	})
	if err != nil {
		return err
	}
	return table.Flush()
}

// workers is how many streams have a subscription open.
func workers(stats *ordergatev1.SubscriptionStats) (streams int) {
	for _, client := range stats.GetClients() {
		streams += int(client.GetStreams())
	}
	return streams
}

// age is how long ago something was, in its largest unit.
func age(at time.Time) string {
	ago := max(0, time.Since(at))
	switch {
	case ago < time.Minute:
		return fmt.Sprintf("%ds", int(ago.Seconds()))
	case ago < time.Hour:
		return fmt.Sprintf("%dm", int(ago.Minutes()))
	case ago < 48*time.Hour:
		return fmt.Sprintf("%dh", int(ago.Hours()))
	}
	return fmt.Sprintf("%dd", int(ago.Hours()/24))
}

// shortDuration writes 10m0s as flags take it: 10m.
func shortDuration(d *durationpb.Duration) string {
	text := d.AsDuration().String()
	for _, zero := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(text, zero) {
			text = text[:len(text)-2]
		}
	}
	return text
}

// conditions are those of a filter, each with its name.
func conditions(filter *ordergatev1.OrderEventFilter) (all [][2]string) {
	add := func(name, value string) {
		if value != "" {
			all = append(all, [2]string{name, value})
		}
	}
	add("directive", enumNames(filter.GetDirectives()))
	if filter.GetDirectiveChangedOnly() {
		add("change", "of the directive")
	}
	add("kind", enumNames(filter.GetKinds()))
	if filter != nil && filter.Livemode != nil {
		add("mode", livemodeName(filter.GetLivemode()))
	}
	var accounts []string
	for _, account := range filter.GetAccounts() {
		accounts = append(accounts, cmp.Or(account, "the platform's own"))
	}
	add("account", strings.Join(accounts, ", "))
	add("country", strings.Join(filter.GetShipToCountries(), ", "))
	add("order", strings.Join(filter.GetOrderIds(), ", "))
	var metadata []string
	for _, key := range slices.Sorted(maps.Keys(filter.GetMetadata())) {
		metadata = append(metadata, key+"="+filter.GetMetadata()[key])
	}
	add("metadata", strings.Join(metadata, ", "))
	return all
}

// filterBrief is a filter as it fits a table.
func filterBrief(filter *ordergatev1.OrderEventFilter) string {
	var parts []string
	for _, condition := range conditions(filter) {
		parts = append(parts, condition[0]+": "+condition[1])
	}
	return cmp.Or(brief(strings.Join(parts, "; ")), "all")
}

type subscriptionsShowCommand struct {
	subscriptionFlags `embed:""`
}

// Help is the longer text of `ordergate subscriptions show --help`.
func (subscriptionsShowCommand) Help() string {
	return `Example:
  ordergate subscriptions show shipping`
}

func (s *subscriptionsShowCommand) Run(ctx context.Context, c console) error {
	return s.show(c, func(client ordergatev1.SubscriptionServiceClient) (answered, error) {
		return client.GetSubscription(ctx, &ordergatev1.GetSubscriptionRequest{Subscription: s.Name})
	})
}

func showSubscription(out io.Writer, subscription *ordergatev1.Subscription) error {
	s := newSheet(out)
	s.field("Subscription", subscription.GetName())
	s.field("Created", localTime(subscription.GetCreateTime()))
	s.field("Ack deadline", shortDuration(subscription.GetAckDeadline()))
	s.field("Max attempts", strconv.Itoa(int(subscription.GetMaxAttempts())))
	s.field("Backoff", shortDuration(subscription.GetMinBackoff())+" to "+shortDuration(subscription.GetMaxBackoff()))
	policy := enumName(subscription.GetDeadLetterPolicy())
	switch subscription.GetDeadLetterPolicy() {
	case ordergatev1.DeadLetterPolicy_DEAD_LETTER_POLICY_BLOCK:
		policy += ": later events of the order wait for it"
	case ordergatev1.DeadLetterPolicy_DEAD_LETTER_POLICY_SKIP:
		policy += ": later events of the order are delivered without it"
	}
	s.field("Dead letter policy", policy)
	switch subscription.GetDelivery() {
	case ordergatev1.DeliveryMode_DELIVERY_MODE_LATEST:
		s.field("Delivery", "LATEST: an order's newest revision replaces its pending events")
	case ordergatev1.DeliveryMode_DELIVERY_MODE_EVERY_EVENT:
		s.field("Delivery", "EVERY_EVENT: also those that are outdated")
	}
	filter := conditions(subscription.GetFilter())
	if len(filter) == 0 {
		s.field("Filter", "none: all events")
	}
	for _, condition := range filter {
		s.field("Only "+condition[0], condition[1])
	}
	s.showStats(subscription.GetStats())
	return s.Flush()
}

// showStats writes how a subscription is doing, if that is known.
func (s *sheet) showStats(stats *ordergatev1.SubscriptionStats) {
	if stats == nil {
		return
	}
	s.field("Backlog", strconv.FormatInt(stats.GetBacklog(), 10))
	s.field("Pending orders", strconv.FormatInt(stats.GetPendingOrders(), 10))
	if at := stats.GetOldestUnackedTime(); at != nil {
		s.field("Oldest unacked", localTime(at)+", "+age(at.AsTime())+" ago")
	}
	s.field("Dead letters", strconv.FormatInt(stats.GetDeadLetters(), 10))
	s.section("Clients", rows(stats.GetClients(), func(client *ordergatev1.ClientStats) []string {
		return []string{
			cmp.Or(client.GetClientId(), "(without an id)"), counted(int64(client.GetStreams()), "stream"),
			counted(client.GetOutstandingEvents(), "event") + " out", counted(client.GetOutstandingBytes(), "byte"),
		}
	}))
}

// counted writes a number of things.
func counted(n int64, thing string) string {
	if n != 1 {
		thing += "s"
	}
	return fmt.Sprintf("%d %s", n, thing)
}

type subscriptionsUpdateCommand struct {
	subscriptionFlags `embed:""`
	settingFlags      `embed:""`
	ClearFilter       bool `name:"clear-filter" help:"Forget the conditions of the filter; those that are given with it are the new ones."`
}

// Help is the longer text of `ordergate subscriptions update --help`.
func (subscriptionsUpdateCommand) Help() string {
	return `Settings without a flag stay, conditions of the filter too: --directive replaces the directives and leaves the countries. The settings apply to later deliveries; a new filter, to events that the gateway has not looked at yet.

Examples:
  ordergate subscriptions update shipping --ack-deadline 2m
  ordergate subscriptions update shipping --directive SHIP,HOLD,CANCEL
  ordergate subscriptions update shipping --clear-filter --live`
}

func (u *subscriptionsUpdateCommand) Run(ctx context.Context, c console) error {
	subscription, given, err := u.settings(u.Name)
	if err != nil {
		return err
	}
	filter, err := u.filter(nil)
	if err != nil {
		return err
	}
	subscription.Filter = filter
	if filter != nil || u.ClearFilter {
		given = append(given, "filter")
	}
	if len(given) == 0 {
		return errors.New("say what is to change: --help lists the settings")
	}
	return u.show(c, func(client ordergatev1.SubscriptionServiceClient) (answered, error) {
		if filter != nil && !u.ClearFilter {
			present, err := client.GetSubscription(ctx, &ordergatev1.GetSubscriptionRequest{Subscription: u.Name})
			if err != nil {
				return nil, err
			}
			if subscription.Filter, err = u.filter(present.GetSubscription().GetFilter()); err != nil {
				return nil, err
			}
		}
		return client.UpdateSubscription(ctx, &ordergatev1.UpdateSubscriptionRequest{Subscription: subscription, UpdateMask: &fieldmaskpb.FieldMask{Paths: given}})
	})
}

type subscriptionsSeekCommand struct {
	subscriptionFlags `embed:""`
	ToBeginning       bool   `name:"to-beginning" xor:"to" help:"Before the oldest event that is kept."`
	ToEnd             bool   `name:"to-end" xor:"to" help:"Behind the newest event."`
	ToTime            moment `name:"to-time" xor:"to" placeholder:"TIME" help:"Before the first event stored at or after this time (2026-01-31T08:00:00Z, or 48h for as long ago)."`
	ToToken           string `name:"to-token" xor:"to" placeholder:"TOKEN" help:"Just after the event that this resume token came with."`
}

// Help is the longer text of `ordergate subscriptions seek --help`.
func (subscriptionsSeekCommand) Help() string {
	return `Backwards, to have events again; forwards, to leave some out. It holds at once, for the workers that are connected too.

Examples:
  ordergate subscriptions seek shipping --to-time 2h
  ordergate subscriptions seek books --to-beginning`
}

func (s *subscriptionsSeekCommand) Run(ctx context.Context, c console) error {
	position, what := &ordergatev1.SubscriptionPosition{}, ""
	switch {
	case s.ToBeginning:
		position.Position, what = &ordergatev1.SubscriptionPosition_Beginning{Beginning: true}, "the beginning: everything that is kept is delivered, also what was acknowledged"
	case s.ToEnd:
		position.Position, what = &ordergatev1.SubscriptionPosition_End{End: true}, "the end: nothing is delivered but what is stored from now on"
	case !s.ToTime.IsZero():
		position.Position = &ordergatev1.SubscriptionPosition_Time{Time: s.ToTime.proto()}
		what = localTime(s.ToTime.proto()) + ": what was stored since then is delivered, also what was acknowledged"
	case s.ToToken != "":
		position.Position, what = &ordergatev1.SubscriptionPosition_ResumeToken{ResumeToken: s.ToToken}, "the place of the token: what was stored after it is delivered, also what was acknowledged"
	default:
		return errors.New("say where to: --to-beginning, --to-end, --to-time TIME or --to-token TOKEN")
	}
	return s.ask(func(client ordergatev1.SubscriptionServiceClient) error {
		response, err := client.SeekSubscription(ctx, &ordergatev1.SeekSubscriptionRequest{Subscription: s.Name, Position: position})
		if err != nil {
			return err
		}
		if s.JSON {
			return printJSON(c.stdout, response.GetSubscription())
		}
		_, err = fmt.Fprintf(c.stdout, `%s was moved to %s.
What was out is void: an acknowledgement of it does not count. Dead letters stay, and block their orders no longer.
Backlog now: %s.
`, plain(s.Name), what, counted(response.GetSubscription().GetStats().GetBacklog(), "event"))
		return err
	})
}

type subscriptionsDeleteCommand struct {
	subscriptionFlags `embed:""`
	confirmFlags      `embed:""`
}

// Help is the longer text of `ordergate subscriptions delete --help`.
func (subscriptionsDeleteCommand) Help() string {
	return `Its workers are told that there is no such subscription. The orders and their events stay.

Examples:
  ordergate subscriptions delete shipping
  ordergate subscriptions delete shipping --yes`
}

func (d *subscriptionsDeleteCommand) Run(ctx context.Context, c console) error {
	return d.ask(func(client ordergatev1.SubscriptionServiceClient) error {
		err := d.confirm(ctx, c, "delete the subscription, its place and its dead letters", func() (string, error) {
			response, err := client.GetSubscription(ctx, &ordergatev1.GetSubscriptionRequest{Subscription: d.Name})
			stats := response.GetSubscription().GetStats()
			return fmt.Sprintf("%s is deleted with its place and its dead letters. Backlog: %d, pending orders: %d, dead letters: %d, open streams: %d.",
				plain(d.Name), stats.GetBacklog(), stats.GetPendingOrders(), stats.GetDeadLetters(), workers(stats)), err
		})
		if err != nil {
			return err
		}
		response, err := client.DeleteSubscription(ctx, &ordergatev1.DeleteSubscriptionRequest{Subscription: d.Name})
		if err != nil {
			return err
		}
		if d.JSON {
			return printJSON(c.stdout, response)
		}
		_, err = fmt.Fprintf(c.stdout, "%s was deleted\n", plain(d.Name))
		return err
	})
}

// confirmFlags let a script do what a person is asked about.
type confirmFlags struct {
	Yes bool `name:"yes" help:"Do not ask."`
}

// confirm asks on the terminal whether to go on, unless it was told not to. Its
// error says that nothing was done.
func (f *confirmFlags) confirm(ctx context.Context, c console, what string, lost func() (string, error)) error {
	if f.Yes {
		return nil
	}
	terminal, ok := c.stdin.(*os.File)
	if !ok || !telemetry.IsTerminal(terminal) {
		return fmt.Errorf("there is no terminal to ask on, and nothing was done: give --yes to %s", what)
	}
	question, err := lost()
	if err != nil {
		return err
	}
	fmt.Fprintf(c.stderr, "%s\nGo on? Type yes: ", question)
	answer := make(chan string, 1)
	go func() { // it is left behind when the command is stopped
		line, _ := bufio.NewReader(terminal).ReadString('\n')
		answer <- strings.TrimSpace(line)
	}()
	select {
	case <-ctx.Done():
		return errStopped
	case a := <-answer:
		if a != "yes" {
			return errors.New("nothing was done")
		}
		return nil
	}
}
