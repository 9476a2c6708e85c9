package stripehook

import (
	"testing"
	"time"

	"github.com/stripe/stripe-go/v76/webhook"

	"github.com/ordergate/ordergate/internal/sample"
)

// benchEvent is a paid Checkout Session.
func benchEvent(b *testing.B) []byte {
	story, err := sample.Story(sample.Completed, time.Now())
	if err != nil {
		b.Fatal(err)
	}
	return story[0].Body
}

func BenchmarkVerify(b *testing.B) {
	const right, wrong = "whsec_0123456789abcdef0123456789abcdef", "whsec_fedcba9876543210fedcba9876543210"
	body := benchEvent(b)
	signed := webhook.GenerateTestSignedPayload(&webhook.UnsignedPayload{Payload: body, Secret: right, Timestamp: time.Now()})
	for _, bench := range []struct{ name, secrets string }{{"genuine", right}, {"forged", wrong}} {
		b.Run(bench.name, func(b *testing.B) {
			secrets, err := ParseSecrets(bench.secrets)
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Verify(body, signed.Header, secrets, signed.Timestamp, Tolerance); (err == nil) != (bench.secrets == right) {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkReadEnvelope(b *testing.B) {
	body := benchEvent(b)
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ReadEnvelope(body); err != nil {
			b.Fatal(err)
		}
	}
}
