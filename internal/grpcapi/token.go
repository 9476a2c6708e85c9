package grpcapi

import (
	"errors"

	"github.com/ordergate/ordergate/internal/token"
)

// tokenKind is the first byte of a token: what it is for, and with that the
// version of what follows.
type tokenKind byte

const (
	resumeToken    tokenKind = 1 // the sequence of the last event
	orderPageToken tokenKind = 2 // the snapshot, and the sequence below which to go on
	eventPageToken tokenKind = 3 // the sequence of the last event

	inboxPageToken  tokenKind = 4 // the sequence below which to go on
	parkedPageToken tokenKind = 5 // how many parked events are left, the longest parked ones

	deadLetterPageToken tokenKind = 6 // the sequence of the last one
)

var (
	errTokenMalformed = errors.New("it is not a token of this kind: pass on what the gateway sent, unchanged")
	errTokenForeign   = errors.New("it is of another gateway's log, or of one that was deleted")
)

// encodeToken makes an opaque token that is bound to a log, of numbers.
func encodeToken(kind tokenKind, logID string, numbers ...uint64) string {
	return token.Encode(byte(kind), "", logID, numbers...)
}

// decodeToken reads a token of a kind and a log into numbers. They are of use only
// without an error.
func decodeToken(text string, kind tokenKind, logID string, numbers ...*uint64) error {
	of, ok := token.Decode(text, byte(kind), "", numbers...)
	switch {
	case !ok:
		return errTokenMalformed
	case of != logID:
		return errTokenForeign
	}
	return nil
}

// decodePageToken is decodeToken for `page_token`, which may be empty: then the
// numbers are left alone.
func decodePageToken(text string, kind tokenKind, logID string, numbers ...*uint64) error {
	if text == "" {
		return nil
	}
	if err := decodeToken(text, kind, logID, numbers...); err != nil {
		return &invalidToken{reasonPageToken, "page_token", err.Error()}
	}
	return nil
}
