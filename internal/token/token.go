// Package token writes opaque tokens that clients keep and give back: page and
// resume tokens, and delivery ids. A token has one spelling, and one that was
// changed, cut off or made for something else is not read.
package token

import (
	"encoding/base64"
	"encoding/binary"
	"hash/crc32"
)

// Encode makes a token: the kind, numbers as varints, a text, and a checksum of it
// all. The checksum also covers seed, which is not in the token: only who knows it
// reads the token. It is no secret, and the checksum no signature.
func Encode(kind byte, seed, text string, numbers ...uint64) string {
	b := []byte{kind}
	for _, n := range numbers {
		b = binary.AppendUvarint(b, n)
	}
	b = append(b, text...)
	b = binary.BigEndian.AppendUint32(b, checksum(b, seed))
	return base64.RawURLEncoding.EncodeToString(b)
}

// Decode reads a token of a kind and a seed into as many numbers as it has, and
// returns its text. They are left alone when it is none.
func Decode(token string, kind byte, seed string, numbers ...*uint64) (text string, ok bool) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil || len(b) < 5 {
		return "", false
	}
	b, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if checksum(b, seed) != sum || b[0] != kind {
		return "", false
	}
	b = b[1:]
	values := make([]uint64, len(numbers))
	for i := range values {
		value, size := binary.Uvarint(b)
		if size <= 0 {
			return "", false
		}
		values[i], b = value, b[size:]
	}
	// Base64 and varints can be written in more than one way; tokens cannot.
	if Encode(kind, seed, string(b), values...) != token {
		return "", false
	}
	for i, n := range numbers {
		*n = values[i]
	}
	return string(b), true
}

func checksum(b []byte, seed string) uint32 {
	return crc32.Update(crc32.ChecksumIEEE(b), crc32.IEEETable, []byte(seed))
}
