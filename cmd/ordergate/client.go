package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/client"
)

// maxMessageBytes is the largest message taken from the gateway: an event of
// the largest --max-body-bytes, and what JSON adds to it.
const maxMessageBytes = 64 << 20

// errStopped is what a call ends with when the command is told to stop.
var errStopped = errors.New("stopped")

// clientFlags are the flags of a command that talks to a running gateway.
type clientFlags struct {
	Addr string `name:"addr" env:"ORDERGATE_ADDR" default:"127.0.0.1:50051" placeholder:"HOST:PORT" help:"The gateway's gRPC address."`
	JSON bool   `name:"json" help:"Print one JSON object a line, as the REST API has them."`

	Token    string `name:"token" env:"ORDERGATE_TOKEN" placeholder:"ogt_…" help:"The token to show, where the gateway wants one. Better in the environment: a flag shows in the process list."`
	TLS      bool   `name:"tls" env:"ORDERGATE_TLS" help:"Connect with TLS, to a certificate of an authority that this system trusts."`
	TLSCA    string `name:"tls-ca" env:"ORDERGATE_TLS_CA" placeholder:"FILE" help:"Connect with TLS, to a certificate of the authorities in this file (PEM)."`
	TLSCert  string `name:"tls-cert" env:"ORDERGATE_CLIENT_CERT" placeholder:"FILE" help:"Connect with TLS, and show this certificate (PEM)."`
	TLSKey   string `name:"tls-key" env:"ORDERGATE_CLIENT_KEY" placeholder:"FILE" help:"The key of that certificate (PEM)."`
	Insecure bool   `name:"insecure" help:"Send the token over plaintext to another machine, although others on the way can read it."`
}

// dialOptions say how to connect to the gateway, and what to show there.
func (f *clientFlags) dialOptions() ([]grpc.DialOption, error) {
	options, err := client.Credentials{
		Token: f.Token, TLS: f.TLS, CAFile: f.TLSCA, CertFile: f.TLSCert, KeyFile: f.TLSKey, PlaintextToken: f.Insecure,
	}.DialOptions(f.Addr)
	if err != nil {
		return nil, fmt.Errorf("%w\nuse --tls or --tls-ca FILE for TLS, --tls-cert with --tls-key for a client certificate, and --insecure to send a token over plaintext all the same", err)
	}
	return append(options, grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessageBytes))), nil
}

// modeFlags select by Stripe's mode.
type modeFlags struct {
	Live bool `name:"live" xor:"mode" help:"Only live orders."`
	Test bool `name:"test" xor:"mode" help:"Only test orders."`
}

func (m *modeFlags) livemode() *bool {
	if m.Live || m.Test {
		return &m.Live
	}
	return nil
}

// connect returns a client of the gateway, for streams that are kept going.
func (f *clientFlags) connect() (*client.Client, error) {
	options, err := f.dialOptions()
	if err != nil {
		return nil, err
	}
	return client.New(f.Addr, options...)
}

// startFlags say with which order event to begin.
type startFlags struct {
	FromBeginning bool   `name:"from-beginning" xor:"start" help:"Start with the oldest event that is kept."`
	Since         moment `name:"since" xor:"start" placeholder:"TIME" help:"Start with the first event at or after this time (2026-01-31T08:00:00Z, or 48h for as long ago)."`
	ResumeToken   string `name:"resume-token" xor:"start" placeholder:"TOKEN" help:"Start just after the event this token came with."`
}

// position returns the place as a message has it: nil when none was given,
// which is now.
func (s *startFlags) position() *ordergatev1.SubscriptionPosition {
	switch {
	case s.FromBeginning:
		return &ordergatev1.SubscriptionPosition{Position: &ordergatev1.SubscriptionPosition_Beginning{Beginning: true}}
	case !s.Since.IsZero():
		return &ordergatev1.SubscriptionPosition{Position: &ordergatev1.SubscriptionPosition_Time{Time: s.Since.proto()}}
	case s.ResumeToken != "":
		return &ordergatev1.SubscriptionPosition{Position: &ordergatev1.SubscriptionPosition_ResumeToken{ResumeToken: s.ResumeToken}}
	}
	return nil
}

// filterFlags select order events.
type filterFlags struct {
	Order     []string `name:"order" placeholder:"ID" help:"Only these orders."`
	Directive []string `name:"directive" placeholder:"NAME" help:"Only events after which the order has one of these directives: WAIT, SHIP, HOLD, CANCEL."`
	Changes   bool     `name:"directive-changes" help:"Only events that changed the directive."`
	Kind      []string `name:"kind" placeholder:"KIND" help:"Only these kinds: PLACED, PAID, PAYMENT_FAILED, EXPIRED, CANCELED, REFUNDED, HELD, RELEASED, UPDATED, ERASED. An event of any kind can change the directive: prefer --directive."`
	modeFlags `embed:""`
	Account   []string          `name:"account" sep:"none" placeholder:"ID" help:"Only sales of this connected account (acct_…); \"\" stands for the platform's own. May be repeated."`
	Country   []string          `name:"country" placeholder:"CODE" help:"Only orders that go to these countries (ISO 3166-1: DE)."`
	Metadata  map[string]string `name:"metadata" mapsep:"none" placeholder:"KEY=VALUE" help:"Only orders whose metadata has this value. May be repeated: then all must match."`
}

// filter returns the filter with the conditions that were given in place of its
// own: nil when there is none at all.
func (f *filterFlags) filter(own *ordergatev1.OrderEventFilter) (*ordergatev1.OrderEventFilter, error) {
	kinds, err := enumValues[ordergatev1.OrderEventKind]("kind", f.Kind)
	if err != nil {
		return nil, err
	}
	directives, err := enumValues[ordergatev1.Directive]("directive", f.Directive)
	if err != nil {
		return nil, err
	}
	given := &ordergatev1.OrderEventFilter{
		Kinds: kinds, Directives: directives, DirectiveChangedOnly: f.Changes,
		Livemode: f.livemode(), OrderIds: f.Order, Accounts: f.Account, Metadata: f.Metadata,
	}
	for _, country := range f.Country {
		given.ShipToCountries = append(given.ShipToCountries, strings.ToUpper(country))
	}
	merged := &ordergatev1.OrderEventFilter{}
	for _, conditions := range []*ordergatev1.OrderEventFilter{own, given} {
		conditions.ProtoReflect().Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
			merged.ProtoReflect().Set(field, value)
			return true
		})
	}
	if proto.Size(merged) == 0 {
		return nil, nil
	}
	return merged, nil
}

// call connects to the gateway, and explains what do fails with.
func (f *clientFlags) call(do func(*grpc.ClientConn) error) error {
	options, err := f.dialOptions()
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient(f.Addr, options...)
	if err != nil {
		return err
	}
	defer conn.Close()
	return f.explain(do(conn))
}

// explain puts an error of gRPC in words for a person. The gateway's own say
// what to do; the others come from the way there.
func (f *clientFlags) explain(err error) error {
	var of interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &of) {
		return err
	}
	s := of.GRPCStatus()
	for _, detail := range s.Details() {
		if _, ok := detail.(*errdetails.ErrorInfo); ok {
			return errors.New(s.Message())
		}
	}
	switch s.Code() {
	case codes.Unavailable:
		return fmt.Errorf("the gateway at %s cannot be reached: %s\nis it running, and is --addr (ORDERGATE_ADDR) its gRPC address? If it has TLS, give --tls or --tls-ca FILE", f.Addr, s.Message())
	case codes.Unimplemented:
		return fmt.Errorf("the gateway at %s does not know this call: it is of another version than this command, or no ordergate", f.Addr)
	case codes.Canceled:
		return errStopped
	}
	return errors.New(s.Message())
}

// moment is a time as flags take it: a time, or how long ago it was.
type moment struct{ time.Time }

// UnmarshalText reads 2026-01-31T08:00:00Z, 48h or 7d.
func (m *moment) UnmarshalText(text []byte) error {
	at, err := time.Parse(time.RFC3339, string(text))
	if err == nil {
		m.Time = at
		return nil
	}
	ago, err := time.ParseDuration(string(text))
	if days, isDays := strings.CutSuffix(string(text), "d"); isDays {
		var n int
		n, err = strconv.Atoi(days)
		ago = time.Duration(n) * 24 * time.Hour
	}
	if err != nil || ago < 0 {
		return fmt.Errorf("%q is not a time: write 2026-01-31T08:00:00Z, or how long ago: 90m, 48h or 7d", text)
	}
	m.Time = time.Now().Add(-ago)
	return nil
}

// proto returns the time as a message has it: nil when it was not given.
func (m moment) proto() *timestamppb.Timestamp {
	if m.IsZero() {
		return nil
	}
	return timestamppb.New(m.Time)
}
