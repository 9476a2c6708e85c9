package client

import (
	"errors"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

// FuzzStatus has the client read whatever a gateway, or a proxy in front of it,
// may send as an error.
func FuzzStatus(f *testing.F) {
	expired, err := status.New(codes.OutOfRange, "expired").WithDetails(&errdetails.ErrorInfo{Domain: "ordergate", Reason: "RESUME_TOKEN_EXPIRED", Metadata: map[string]string{"earliest_resume_token": "x"}})
	if err != nil {
		f.Fatal(err)
	}
	later, err := status.New(codes.Unavailable, "later").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(-time.Hour)})
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range []*status.Status{expired, later} {
		b, err := proto.Marshal(s.Proto())
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var s spb.Status
		if proto.Unmarshal(b, &s) != nil || codes.Code(s.GetCode()) == codes.OK {
			return
		}
		err := status.ErrorProto(&s)
		got := explained(err)
		var expired *ExpiredError
		if status.Code(got) != status.Code(err) || errors.As(got, &expired) && expired.Error() == "" {
			t.Errorf("%v became %v", err, got)
		}
		if wait := new(Client).newTries(nil).wait(got); wait < 0 || wait > maxRetryDelay+2*maxPause {
			t.Errorf("the next try is in %v", wait)
		}
		if permanent(got) && status.Code(got) == codes.Unavailable {
			t.Error("UNAVAILABLE is no end")
		}
	})
}
