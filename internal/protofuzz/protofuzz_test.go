package protofuzz

import (
	"math/rand/v2"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// TestFill checks that fields and values of all kinds come about, and that messages can be encoded.
func TestFill(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var named, year9999, both int
	for range 5000 {
		choices := make([]byte, random.IntN(100))
		for i := range choices {
			choices[i] = byte(random.Uint32())
		}
		var request ordergatev1.WatchOrdersRequest
		if rest := Fill(&request, choices, "cs_1"); len(rest) > 0 && len(rest) == len(choices) {
			t.Fatalf("no byte of %x is used", choices)
		}
		if _, err := proto.Marshal(&request); err != nil {
			t.Fatal(err)
		}
		if request.GetResumeToken() == "cs_1" {
			named++
		}
		if proto.Equal(&timestamppb.Timestamp{Seconds: request.GetStartTime().GetSeconds()}, &timestamppb.Timestamp{Seconds: 253_402_300_799}) {
			year9999++
		}
		if len(request.GetFilter().GetKinds()) > 0 {
			both++
		}
	}
	if named == 0 || year9999 == 0 || both == 0 {
		t.Errorf("a given text %d times, the year 9999 %d times, a list %d times", named, year9999, both)
	}
	var empty ordergatev1.WatchOrdersRequest
	if Fill(&empty, nil); !proto.Equal(&empty, &ordergatev1.WatchOrdersRequest{}) {
		t.Errorf("without bytes: %v", &empty)
	}
}
