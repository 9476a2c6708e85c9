package eventlog

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

func FuzzParseKeys(f *testing.F) {
	f.Add(testKey)
	f.Add("# made today\n" + testKey + "\r\n\n" + otherTestKey)
	f.Fuzz(func(t *testing.T, content string) {
		keys, err := ParseKeys(content)
		if err != nil {
			return
		}
		if len(keys.current) < minKeyLength || keys.previous != "" && len(keys.previous) < minKeyLength || strings.ContainsAny(keys.current+keys.previous, "\n") || !strings.Contains(content, keys.current) {
			t.Errorf("%q was taken for %q", content, keys)
		}
	})
}

func FuzzUnseal(f *testing.F) {
	sealed := seal("the log's own key", testKey)
	f.Add(sealed)
	f.Add(sealed[:len(sealed)-9] + "\n")
	f.Add(keyHeader + keyFormat + "AAAA\n")
	f.Fuzz(func(t *testing.T, content string) {
		// Nobody who does not have the key makes a file that opens with it.
		if key, err := unseal(content, otherTestKey); err == nil {
			t.Errorf("%q opens, and has %q", content, key)
		}
	})
}

func FuzzDecodeNote(f *testing.F) {
	for _, text := range []string{`{"n":7,"streams":{"INBOX":{"covered":9,"first":1,"missing":[2]}}}`, `{"n":1,"streams":{"INBOX":null}}`, `null`} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if n := newestNote(text); n != nil {
			return // a checksum that fits
		}
		// With its checksum, any text is either a note or refused.
		sum := sha256.Sum256(text)
		n := newestNote([]byte(hex.EncodeToString(sum[:]) + " " + string(text) + "\n"))
		if n == nil {
			return
		}
		for name, stream := range n.Streams {
			if stream == nil {
				t.Errorf("nothing is known of %s", name)
			}
		}
	})
}

// FuzzParseBlock changes blocks: no record that was changed is read.
func FuzzParseBlock(f *testing.F) {
	record := func(sequence uint64, subject, payload string) []byte {
		size := recordHeader + len(subject) + len(payload) + recordSum
		b := make([]byte, 22, size)
		b[0], b[1], b[4], b[11], b[20] = byte(size), byte(size>>8), byte(sequence), byte(sequence>>56), byte(len(subject))
		b = append(append(b, subject...), payload...)
		return append(b, hashOf([]byte("S-1")).sum(b[4:20], []byte(subject), []byte(payload))...)
	}
	whole := bytes.Join([][]byte{record(5, "inbox.evt_1", "{}"), record(tombstone|3, "", ""), record(erased|6, "", "xxxx"), record(7, "inbox.evt_2", "{}")}, nil)
	if b := parseBlock(whole, "S-1"); b.problem != "" || b.first != 5 || b.last != 7 || len(b.tombstones) != 1 || b.tombstones[0] != 3 {
		f.Fatalf("%+v", b)
	}
	f.Add(whole)
	f.Add(whole[:len(whole)-3])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, content []byte) {
		b := parseBlock(content, "S-1")
		if b.problem == "" && len(content) > 0 && b.last == 0 && b.first != 0 {
			t.Errorf("%+v", b)
		}
		// What is read does not depend on what is damaged behind it.
		behind := parseBlock(append(bytes.Clone(whole), content...), "S-1")
		if behind.first != 5 || behind.last < 7 {
			t.Errorf("behind whole records: %+v", behind)
		}
		if parseBlock(content, "S-2").last != 0 {
			t.Error("a record of another block was read")
		}
	})
}

// FuzzEventID compares the id that is read without decoding with the decoded one.
func FuzzEventID(f *testing.F) {
	payload, err := proto.Marshal(orderEvent("cs_1", 1))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(payload)
	f.Add([]byte{0x0b, 0x0c, 0x0a, 1, 'x'})
	f.Add([]byte{0x0a, 0xff})
	f.Fuzz(func(t *testing.T, payload []byte) {
		id := (&OrderRecord{payload: payload}).EventID()
		var event ordergatev1.OrderEvent
		if proto.Unmarshal(payload, &event) == nil && event.GetId() != id && bytes.Count(payload, []byte{0x0a}) == 1 {
			t.Errorf("%q, decoded %q", id, event.GetId())
		}
	})
}
