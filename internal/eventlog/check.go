package eventlog

import (
	"bytes"
	"cmp"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/minio/highwayhash"
)

// The engine drops what it cannot read, and goes on: it cuts a block off at the
// first record that is damaged, deletes blocks without a key, and makes a stream
// anew whose description is gone. So its files are looked at before it is started.
// The names and layouts are those of nats-server's filestore.go.
const (
	engineDir   = "jetstream"
	account     = "$G"
	metaName    = "meta.inf"
	metaSumName = "meta.sum"
	metaKeyName = "meta.key"
	messagesDir = "msgs"
	indexName   = "index.db"

	consumersDir  = "obs"
	consumerState = "o.dat"

	recordHeader = 22
	recordSum    = 8
	maxRecord    = 32 << 20
	withHeaders  = 1 << 31 // of a length
	erased       = 1 << 63 // of a sequence
	tombstone    = 1 << 62
)

// ErrDamaged means that the files of the log do not hold what was acknowledged.
var ErrDamaged = errors.New("the log's files are damaged")

const damageMend = "keep a copy of the directory as it is; then restore a backup of it, or start with an empty one and have `ordergate backfill` " +
	"list what Stripe still has (30 days); or go on without what cannot be read, once, with --accept-damage"

func damaged(dir string, problems []string) error {
	const most = 10
	if more := len(problems) - most; more > 0 {
		problems = append(problems[:most:most], fmt.Sprintf("and %d more", more))
	}
	return fmt.Errorf("%w: %s: %s; %s", ErrDamaged, dir, strings.Join(problems, "; "), damageMend)
}

func streamsDir(dir string) string { return filepath.Join(dir, engineDir, account, "streams") }

// checker looks at the files of a log that is not open.
type checker struct {
	dir       string
	note      *note
	untouched bool   // nobody has had the log since its clean end
	key       string // of the log; empty in plaintext
	ages      map[string]time.Duration
	now       time.Time

	content  bytes.Buffer // of the newest block that was read: the room is used again
	problems []string
	// useless files make the engine fail. What was acknowledged is not in them, or
	// among the problems.
	useless []string
}

// check returns what of the acknowledged is not there.
//
// After a clean end only streams are read that were written to since; the others
// may be read later.
func (c *checker) check() error {
	for _, name := range slices.Sorted(maps.Keys(c.note.Streams)) {
		if err := c.checkStream(name, c.note.Streams[name]); err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) damage(format string, args ...any) {
	c.problems = append(c.problems, fmt.Sprintf(format, args...))
}

func (c *checker) checkStream(name string, s *streamNote) error {
	if s.Covered == 0 { // it may not have come to the disk
		return nil
	}
	dir := filepath.Join(streamsDir(c.dir), name)
	if problem := c.checkMeta(dir, name); problem != "" {
		c.damage("stream %s: %s", name, problem)
		return nil
	}
	if err := c.checkConsumers(dir, name); err != nil {
		return err
	}
	files, err := blockFiles(dir)
	if err != nil {
		return err
	}
	if c.untouched {
		changed, err := c.changed(name, files)
		if err != nil || !changed {
			return err
		}
	}
	return c.checkBlocks(name, s, files)
}

// checkMeta returns what is wrong with a stream's description.
func (c *checker) checkMeta(dir, name string) string {
	meta, err := os.ReadFile(filepath.Join(dir, metaName))
	if err != nil {
		return fmt.Sprintf("its description cannot be read: %v", err)
	}
	sum, err := os.ReadFile(filepath.Join(dir, metaSumName))
	if err != nil {
		return fmt.Sprintf("the checksum of its description cannot be read: %v", err)
	}
	if string(sum) != hex.EncodeToString(hashOf([]byte(name)).sum(meta)) {
		return fmt.Sprintf("its description %s does not fit its checksum", filepath.Join(dir, metaName))
	}
	if c.key == "" {
		return ""
	}
	if _, _, err := c.blockKey(filepath.Join(dir, metaKeyName), name); err != nil {
		return fmt.Sprintf("its key %s cannot be used: %v", filepath.Join(dir, metaKeyName), err)
	}
	return ""
}

// checkConsumers finds consumers whose files are torn: they are written without a
// flush, and the engine may fail of them.
func (c *checker) checkConsumers(stream, name string) error {
	entries, err := os.ReadDir(filepath.Join(stream, consumersDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, entry := range entries {
		dir := filepath.Join(stream, consumersDir, entry.Name())
		meta, _ := os.ReadFile(filepath.Join(dir, metaName)) // what cannot be read is empty
		sum, _ := os.ReadFile(filepath.Join(dir, metaSumName))
		whole := string(sum) == hex.EncodeToString(hashOf([]byte(name+"/"+entry.Name())).sum(meta))
		if c.key != "" && whole {
			key, _, err := c.blockKey(filepath.Join(dir, metaKeyName), name+"."+entry.Name())
			state, _ := os.ReadFile(filepath.Join(dir, consumerState))
			if whole = err == nil; whole && len(state) > 0 {
				_, _, err := open(key, state)
				whole = err == nil
			}
		}
		if !whole {
			c.useless = append(c.useless, dir)
		}
	}
	return nil
}

type blockFile struct {
	path  string
	index uint32
}

// key is the file with the block's key, if it is encrypted.
func (f blockFile) key() string { return strings.TrimSuffix(f.path, ".blk") + ".key" }

// blockFiles lists the blocks of a stream in their order.
func blockFiles(stream string) (files []blockFile, err error) {
	entries, err := os.ReadDir(filepath.Join(stream, messagesDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, entry := range entries {
		var index uint32
		if n, _ := fmt.Sscanf(entry.Name(), "%d.blk", &index); n == 1 && entry.Name() == fmt.Sprintf("%d.blk", index) {
			files = append(files, blockFile{filepath.Join(stream, messagesDir, entry.Name()), index})
		}
	}
	slices.SortFunc(files, func(a, b blockFile) int { return cmp.Compare(a.index, b.index) })
	return files, nil
}

// changed reports whether somebody wrote to one of the blocks after a clean end.
func (c *checker) changed(name string, files []blockFile) (bool, error) {
	for _, file := range files {
		info, err := os.Stat(file.path)
		if err != nil {
			return false, err
		}
		if _, _, keyErr := c.keyOf(name, file); keyErr != nil || !info.ModTime().Before(c.note.At) {
			return true, nil
		}
	}
	return false, nil
}

// checkBlocks reads all blocks of a stream. Records that cannot be read are of
// a write that did not end, if everything that is covered comes before them.
func (c *checker) checkBlocks(name string, s *streamNote, files []blockFile) error {
	var first, last uint64
	before := len(c.problems)
	removed := map[uint64]bool{}
	var holes [][2]uint64 // between blocks
	for i, file := range files {
		b, err := c.readBlock(name, file)
		if err != nil {
			return err
		}
		for _, sequence := range b.tombstones {
			removed[sequence] = true
		}
		gone := i > 0 && !known(s.Missing, files[i-1].index, file.index)
		if gone || i > 0 && s.Deleted == 0 && b.first > last+1 {
			holes = append(holes, [2]uint64{last + 1, max(b.first, 1) - 1})
		}
		if b.first > 0 && first == 0 {
			first = b.first
		}
		last = max(last, b.last)
		if b.problem != "" && last < s.Covered {
			c.damage("%s: %s; %s was on disk up to %d, and can be read up to %d there", file.path, b.problem, name, s.Covered, last)
		}
		if b.keyless {
			c.useless = append(c.useless, file.path)
		}
	}
	if last < s.Covered && len(c.problems) == before {
		c.damage("stream %s ends at %d, and was on disk up to %d", name, last, s.Covered)
	}
	if age, whole := c.ages[name]; whole {
		for _, hole := range holes {
			if hole[0] <= s.Covered && !allIn(removed, hole[0], hole[1]) {
				c.damage("stream %s: the events %d to %d are missing", name, hole[0], hole[1])
			}
		}
		expired := age > 0 && !s.FirstTime.Add(age).After(c.now)
		if first > s.First && !expired && !allIn(removed, s.First, first-1) {
			c.damage("stream %s begins at %d, and the events from %d on are not too old", name, first, s.First)
		}
	}
	return nil
}

// known reports whether all blocks between two are known to be no more.
func known(missing []uint32, from, to uint32) bool {
	for index := from + 1; index < to; index++ {
		if !slices.Contains(missing, index) {
			return false
		}
	}
	return true
}

func allIn(set map[uint64]bool, from, to uint64) bool {
	for sequence := from; sequence <= to; sequence++ {
		if !set[sequence] {
			return false
		}
	}
	return true
}

// missingBlocks returns the blocks between the first and the last of a stream that
// are no more.
func missingBlocks(files []blockFile) (missing []uint32) {
	for i := 1; i < len(files); i++ {
		for index := files[i-1].index + 1; index < files[i].index; index++ {
			missing = append(missing, index)
		}
	}
	return missing
}

// block is what is in a block.
type block struct {
	first, last uint64 // sequences of its events, also erased ones; last also of its tombstones
	tombstones  []uint64
	problem     string // why reading ended before the end
	keyless     bool
}

func (c *checker) readBlock(stream string, file blockFile) (block, error) {
	f, err := os.Open(file.path)
	if err != nil {
		return block{}, err
	}
	defer f.Close()
	c.content.Reset()
	if _, err := c.content.ReadFrom(f); err != nil {
		return block{}, err
	}
	content := c.content.Bytes()
	if c.key != "" {
		key, nonce, err := c.keyOf(stream, file)
		if err != nil {
			return block{problem: fmt.Sprintf("its key cannot be used: %v", err), keyless: true}, nil
		}
		cipherBlock, err := aes.NewCipher(key)
		if err != nil {
			return block{}, err
		}
		cipher.NewCTR(cipherBlock, nonce).XORKeyStream(content, content)
	}
	return parseBlock(content, fmt.Sprintf("%s-%d", stream, file.index)), nil
}

// keyOf returns the key of a block; none in plaintext.
func (c *checker) keyOf(stream string, file blockFile) (key, nonce []byte, err error) {
	if c.key == "" {
		return nil, nil, nil
	}
	return c.blockKey(file.key(), fmt.Sprintf("%s:%d", stream, file.index))
}

// blockKey opens the key of a block, or of a stream, with that of the log.
func (c *checker) blockKey(path, context string) (key, nonce []byte, err error) {
	sealed, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	mac := hmac.New(sha256.New, []byte(c.key))
	mac.Write([]byte(account + context)) // a hash takes everything
	return open(mac.Sum(nil), sealed)
}

// open returns what was sealed, and the nonce in front of it.
func open(key, sealed []byte) (content, nonce []byte, err error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, nil, err
	}
	opener, err := cipher.NewGCMWithNonceSize(block, block.BlockSize())
	if err != nil {
		return nil, nil, err
	}
	if len(sealed) < opener.NonceSize() {
		return nil, nil, errors.New("it is cut off")
	}
	nonce = sealed[:opener.NonceSize()]
	content, err = opener.Open(nil, nonce, sealed[len(nonce):], nil)
	return content, nonce, err
}

// hasher is the hash that the engine uses.
type hasher struct{ digest *highwayhash.Digest64 }

// hashOf returns the hash for what has this name.
func hashOf(name []byte) hasher {
	key := sha256.Sum256(name)
	digest, err := highwayhash.NewDigest64(key[:])
	if err != nil {
		panic(err) // the key has the right length
	}
	return hasher{digest}
}

func (h hasher) sum(parts ...[]byte) []byte {
	h.digest.Reset()
	for _, part := range parts {
		h.digest.Write(part)
	}
	return h.digest.Sum(nil)
}

// parseBlock reads the records of a block, up to the first that is damaged.
//
// A record is its length (4 bytes, little endian, with a flag), sequence (8, with
// flags), time (8), length of the subject (2), subject, length of the headers (4,
// if there are any), headers, payload, and a checksum of all but the lengths.
func parseBlock(content []byte, name string) (b block) {
	le := binary.LittleEndian
	hash := hashOf([]byte(name))
	for at := 0; at < len(content); {
		rest := content[at:]
		if len(rest) < recordHeader+recordSum {
			b.problem = fmt.Sprintf("cut off at byte %d", at)
			return b
		}
		length, subject := le.Uint32(rest), int(le.Uint16(rest[20:]))
		headers := 0
		if length&withHeaders != 0 {
			length, headers = length&^withHeaders, 4
		}
		size := int(length)
		if size < recordHeader+recordSum+subject+headers || size > len(rest) || size > maxRecord {
			b.problem = fmt.Sprintf("no whole record at byte %d", at)
			return b
		}
		data := rest[recordHeader:size]
		body := data[subject+headers : len(data)-recordSum]
		if !bytes.Equal(hash.sum(rest[4:20], data[:subject], body), data[len(data)-recordSum:]) {
			b.problem = fmt.Sprintf("the record at byte %d does not fit its checksum", at)
			return b
		}
		at += size
		sequence := le.Uint64(rest[4:])
		if sequence&tombstone != 0 {
			sequence &^= tombstone
			b.tombstones = append(b.tombstones, sequence)
		} else if sequence &^= erased; b.first == 0 {
			b.first = sequence
		}
		b.last = max(b.last, sequence)
	}
	return b
}
