package grpcapi

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"hash/crc32"
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

// encodeToken makes an opaque token that is bound to a log: the kind, numbers
// as varints, the log's id, and a checksum of it all.
func encodeToken(kind tokenKind, logID string, numbers ...uint64) string {
	b := []byte{byte(kind)}
	for _, n := range numbers {
		b = binary.AppendUvarint(b, n)
	}
	b = append(b, logID...)
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	return base64.RawURLEncoding.EncodeToString(b)
}

// decodeToken reads a token of a kind and a log into numbers.
func decodeToken(token string, kind tokenKind, logID string, numbers ...*uint64) error {
	b, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil || len(b) < 5 {
		return errTokenMalformed
	}
	b, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if crc32.ChecksumIEEE(b) != sum || tokenKind(b[0]) != kind {
		return errTokenMalformed
	}
	b = b[1:]
	values := make([]uint64, len(numbers))
	for i := range values {
		value, size := binary.Uvarint(b)
		if size <= 0 {
			return errTokenMalformed
		}
		values[i], b = value, b[size:]
	}
	// Base64 and varints can be written in more than one way; tokens cannot.
	if encodeToken(kind, string(b), values...) != token {
		return errTokenMalformed
	}
	if string(b) != logID {
		return errTokenForeign
	}
	for i, n := range numbers {
		*n = values[i]
	}
	return nil
}
