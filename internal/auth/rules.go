package auth

import (
	"fmt"
	"slices"

	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	reflectionv1alpha "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// rule says who may call a method.
type rule struct {
	open bool // everybody, also without a credential
	role Role // the least that may
	own  bool // subscribers: only for their own subscriptions
}

var (
	forAll         = rule{open: true}
	forReaders     = rule{role: Reader}
	forSubscribers = rule{role: Subscriber, own: true}
	forOperators   = rule{role: Operator}
)

// rules are all methods of the gateway. What is missing here is refused.
var rules = map[string]rule{
	ordergatev1.OrderService_GetOrder_FullMethodName:        forReaders,
	ordergatev1.OrderService_ListOrders_FullMethodName:      forReaders,
	ordergatev1.OrderService_ListOrderEvents_FullMethodName: forReaders,
	ordergatev1.OrderService_WatchOrders_FullMethodName:     forReaders,
	ordergatev1.OrderService_HoldOrder_FullMethodName:       forOperators,
	ordergatev1.OrderService_ReleaseOrder_FullMethodName:    forOperators,
	ordergatev1.OrderService_ReinstateOrder_FullMethodName:  forOperators,
	ordergatev1.OrderService_EraseOrders_FullMethodName:     forOperators,

	ordergatev1.SubscriptionService_GetSubscription_FullMethodName:    forReaders,
	ordergatev1.SubscriptionService_ListSubscriptions_FullMethodName:  forReaders,
	ordergatev1.SubscriptionService_Consume_FullMethodName:            forSubscribers,
	ordergatev1.SubscriptionService_Pull_FullMethodName:               forSubscribers,
	ordergatev1.SubscriptionService_Acknowledge_FullMethodName:        forSubscribers,
	ordergatev1.SubscriptionService_ModifyAckDeadline_FullMethodName:  forSubscribers,
	ordergatev1.SubscriptionService_ListDeadLetters_FullMethodName:    forSubscribers,
	ordergatev1.SubscriptionService_CreateSubscription_FullMethodName: forOperators,
	ordergatev1.SubscriptionService_UpdateSubscription_FullMethodName: forOperators,
	ordergatev1.SubscriptionService_DeleteSubscription_FullMethodName: forOperators,
	ordergatev1.SubscriptionService_SeekSubscription_FullMethodName:   forOperators,
	ordergatev1.SubscriptionService_RedriveDeadLetters_FullMethodName: forOperators,
	ordergatev1.SubscriptionService_DiscardDeadLetters_FullMethodName: forOperators,

	ordergatev1.EventService_ListEvents_FullMethodName:      forOperators,
	ordergatev1.EventService_GetEvent_FullMethodName:        forOperators,
	ordergatev1.EventService_ReprocessEvents_FullMethodName: forOperators,
	ordergatev1.EventService_Backfill_FullMethodName:        forOperators,
	ordergatev1.EventService_DismissEvents_FullMethodName:   forOperators,

	healthv1.Health_Check_FullMethodName: forAll,
	healthv1.Health_List_FullMethodName:  forAll,
	healthv1.Health_Watch_FullMethodName: forAll,

	reflectionv1.ServerReflection_ServerReflectionInfo_FullMethodName:      forReaders,
	reflectionv1alpha.ServerReflection_ServerReflectionInfo_FullMethodName: forReaders,
}

// ForAll reports whether a method may be called without a credential.
func ForAll(method string) bool { return rules[method].open }

// Check says whether the caller may send this message. Every message that comes
// must be shown to it.
func (c *Call) Check(message any) error {
	if !c.rule.own || c.Principal.Role != Subscriber {
		return nil
	}
	var subscription string
	switch m := message.(type) {
	case *ordergatev1.ConsumeRequest:
		// The service wants this in the first message, and in no other.
		if m.GetOpen() == nil {
			return nil
		}
		subscription = m.GetOpen().GetSubscription()
	case interface{ GetSubscription() string }:
		subscription = m.GetSubscription()
	default:
		return &DeniedError{"no subscription is named", c.Principal.Name, c.Principal.Role, Operator}
	}
	if slices.Contains(c.Principal.Subscriptions, subscription) {
		return nil
	}
	return &DeniedError{fmt.Sprintf("%s has the role subscriber, but not for this subscription, and may not call %s for it: the access file can give it to a subscriber; the role operator may", c.Principal.Name, shortName(c.method)),
		c.Principal.Name, c.Principal.Role, Operator}
}
