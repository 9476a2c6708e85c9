// Package protofuzz makes protobuf messages out of the bytes of a fuzzer. Bytes that are parsed as
// an encoded message are rarely a valid one; here, each byte chooses a field or a value, and values
// at the limits of their types are as likely as others.
package protofuzz

import (
	"encoding/binary"
	"math"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

const (
	// maxDepth bounds the nesting of messages, and maxElements the length of lists and maps.
	maxDepth, maxElements = 4, 3
	// longString is the length of a long string, in bytes.
	longString = 20_000
)

// numbers are values at which code that computes with times, sizes and counts goes wrong: limits of
// types, and of google.protobuf.Timestamp and Duration in seconds.
var numbers = []int64{
	0, 1, -1, 2, 10, 100, 1000, 999_999_999, 1_000_000_000, -999_999_999,
	math.MaxInt32, math.MinInt32, math.MaxInt64, math.MinInt64, math.MaxInt64 / 1_000_000_000, math.MinInt64/1_000_000_000 - 1,
	253_402_300_799, 253_402_300_800, -62_135_596_800, -62_135_596_801, 315_576_000_000, 315_576_000_001, 1_700_000_000,
}

// Fill sets fields of a message as the bytes choose, and returns the bytes that are left. Strings are
// mostly taken from texts, such as the ids of stored objects. Without bytes, the message stays empty.
func Fill(message proto.Message, choices []byte, texts ...string) (rest []byte) {
	f := &filler{choices: choices, texts: texts}
	f.message(message.ProtoReflect(), 0)
	return f.choices
}

type filler struct {
	choices []byte
	texts   []string
}

// next returns the next byte; 0 at the end.
func (f *filler) next() byte {
	if len(f.choices) == 0 {
		return 0
	}
	next := f.choices[0]
	f.choices = f.choices[1:]
	return next
}

func (f *filler) message(m protoreflect.Message, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		if depth > maxDepth || f.next()%2 == 0 {
			continue
		}
		switch {
		case field.IsMap():
			entries := m.Mutable(field).Map()
			for range f.next() % (maxElements + 1) {
				key := f.scalar(field.MapKey()).MapKey()
				if field.MapValue().Message() != nil {
					f.message(entries.Mutable(key).Message(), depth+1)
				} else {
					entries.Set(key, f.scalar(field.MapValue()))
				}
			}
		case field.IsList():
			elements := m.Mutable(field).List()
			for range f.next() % (maxElements + 1) {
				if field.Message() != nil {
					f.message(elements.AppendMutable().Message(), depth+1)
				} else {
					elements.Append(f.scalar(field))
				}
			}
		case field.Message() != nil:
			f.message(m.Mutable(field).Message(), depth+1)
		default:
			m.Set(field, f.scalar(field))
		}
	}
}

func (f *filler) scalar(field protoreflect.FieldDescriptor) protoreflect.Value {
	switch field.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(f.next()%2 == 1)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(f.number() % 32))
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return protoreflect.ValueOfInt32(int32(f.number()))
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return protoreflect.ValueOfInt64(f.number())
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return protoreflect.ValueOfUint32(uint32(f.number()))
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return protoreflect.ValueOfUint64(uint64(f.number()))
	case protoreflect.FloatKind:
		return protoreflect.ValueOfFloat32(float32(f.number()))
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(math.Float64frombits(uint64(f.number())))
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte(f.text()))
	}
	return protoreflect.ValueOfString(f.text())
}

// number returns one of the numbers, a byte, or eight bytes.
func (f *filler) number() int64 {
	switch choice := int(f.next()); {
	case choice < len(numbers):
		return numbers[choice]
	case choice < 128:
		return int64(f.next())
	default:
		var n [8]byte
		copy(n[:], f.choices)
		f.choices = f.choices[min(8, len(f.choices)):]
		return int64(binary.BigEndian.Uint64(n[:]))
	}
}

// text returns one of the texts, up to 32 bytes as they are, or a long string.
func (f *filler) text() string {
	choice := int(f.next())
	switch {
	case choice == 255:
		return strings.Repeat("x", longString)
	case choice < 160 && len(f.texts) > 0:
		return f.texts[choice%len(f.texts)]
	}
	n := min(choice%33, len(f.choices))
	text := string(f.choices[:n])
	f.choices = f.choices[n:]
	return strings.ToValidUTF8(text, "\uFFFD")
}
