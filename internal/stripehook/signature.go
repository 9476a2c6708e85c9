// Package stripehook proves that the body of a webhook comes from Stripe, and
// reads the envelope of the event inside. It does no I/O and has no clock of
// its own.
//
// The promise it keeps: nothing forged gets in. A body is accepted only with a
// v1 signature made with one of the configured secrets, and only while its
// timestamp is within the tolerance, in the past and in the future.
package stripehook

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/stripe/stripe-go/v76/webhook"
)

// Tolerance is how far a signature's timestamp may be from now, in both
// directions. It is the default of Stripe's own libraries:
// https://docs.stripe.com/webhooks#replay-attacks.
const Tolerance = 5 * time.Minute

const (
	// maxHeader bounds the Stripe-Signature header, in bytes. Stripe sends one
	// signature of 68 bytes per active secret.
	maxHeader = 2048
	// maxSignatures bounds the v1 entries. Stripe signs with every secret that
	// is active while one is rolled: two, seldom more.
	maxSignatures = 8
)

// Why a body was refused. Each error that Verify returns wraps one of them.
var (
	// ErrUnsigned means that there was no signature at all: the sender is not
	// Stripe, or a proxy dropped the header.
	ErrUnsigned = errors.New("no Stripe-Signature header")
	// ErrMalformed means that the header is not one that Stripe writes.
	ErrMalformed = errors.New("malformed Stripe-Signature header")
	// ErrMismatch means that no signature was made with a configured secret
	// over these bytes.
	ErrMismatch = errors.New("no signature matches a configured secret")
	// ErrStale means a right signature, older than the tolerance.
	ErrStale = errors.New("signature is too old")
	// ErrFuture means a right signature with a timestamp further ahead than
	// the tolerance.
	ErrFuture = errors.New("signature is from the future")
)

// CheckHeader refuses a header for which Verify would return ErrUnsigned or
// ErrMalformed whatever the body is, so that the body need not be read.
func CheckHeader(header string) error {
	_, err := signatureTime(header)
	return err
}

// Verify returns the secrets that signed body, at least one and in their order,
// according to header, the value of Stripe-Signature. While a secret is rolled,
// Stripe signs with the old and the new one. now is compared with the time of the
// signature.
//
// The signature is checked before its age, so that ErrStale and ErrFuture are
// only ever said of something that Stripe did sign.
func Verify(body []byte, header string, secrets []Secret, now time.Time, tolerance time.Duration) ([]Secret, error) {
	signedAt, err := signatureTime(header)
	if err != nil {
		return nil, err
	}
	matching, err := matchingSecrets(body, header, secrets)
	if err != nil {
		return nil, err
	}
	// Compared without a subtraction, which would saturate for absurd times.
	if signedAt.Before(now.Add(-tolerance)) {
		return nil, fmt.Errorf("%w: signed at %s, now %s", ErrStale, signedAt.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	if signedAt.After(now.Add(tolerance)) {
		return nil, fmt.Errorf("%w: signed at %s, now %s", ErrFuture, signedAt.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return matching, nil
}

func matchingSecrets(body []byte, header string, secrets []Secret) (matching []Secret, _ error) {
	for _, s := range secrets {
		if s.value == "" {
			continue // anyone can sign with the empty key
		}
		err := webhook.ValidatePayloadIgnoringTolerance(body, header, s.value)
		if errors.Is(err, webhook.ErrInvalidHeader) {
			return nil, ErrMalformed
		}
		if err == nil {
			matching = append(matching, s)
		}
	}
	if len(matching) == 0 {
		return nil, ErrMismatch
	}
	return matching, nil
}

// signatureTime reads the one timestamp of a header, and refuses a header that
// Stripe would not have written before any work is done on it.
func signatureTime(header string) (time.Time, error) {
	if header == "" {
		return time.Time{}, ErrUnsigned
	}
	if len(header) > maxHeader {
		return time.Time{}, fmt.Errorf("%w: %d bytes, at most %d", ErrMalformed, len(header), maxHeader)
	}
	var timestamps, signatures int
	var seconds int64
	for part := range strings.SplitSeq(header, ",") {
		name, value, _ := strings.Cut(part, "=")
		switch name {
		case "t":
			timestamps++
			var err error
			if seconds, err = strconv.ParseInt(value, 10, 64); err != nil {
				return time.Time{}, fmt.Errorf("%w: t is not a number of seconds", ErrMalformed)
			}
		case "v1":
			signatures++
		}
	}
	switch {
	case timestamps != 1:
		return time.Time{}, fmt.Errorf("%w: %d timestamps, want 1", ErrMalformed, timestamps)
	case signatures == 0:
		return time.Time{}, fmt.Errorf("%w: no v1 signature", ErrMalformed)
	case signatures > maxSignatures:
		return time.Time{}, fmt.Errorf("%w: %d v1 signatures, at most %d", ErrMalformed, signatures, maxSignatures)
	}
	return time.Unix(seconds, 0), nil
}
