package eventlog

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
)

const (
	// keyFile holds the log's own key, sealed with that of the configuration.
	keyFile   = "KEY"
	keyHeader = "# The key of this log, sealed with the one that --encryption-key-file names. Without this file nothing here can be read.\n"
	keyName   = "ordergate-key-"
	keyFormat = keyName + "1 "
	saltSize  = 16
	// minKeyLength is of 24 random bytes in base64.
	minKeyLength = 32
	maxKeyLength = 4096
)

// ErrKey means that the log cannot be read with the key that was given, if any.
var ErrKey = errors.New("the log's encryption key")

// Keys are what the log's own key is sealed with. The zero value is none: the log
// is not encrypted.
type Keys struct {
	current, previous string
}

// ParseKeys reads a key file: the key on its first line, the one before it on
// the second while it is replaced. `#` begins a comment line. The error tells no
// key.
func ParseKeys(content string) (Keys, error) {
	var keys []string
	for line := range strings.Lines(content) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			keys = append(keys, line)
		}
	}
	const mend = "make one with: openssl rand -base64 32"
	if len(keys) == 0 {
		return Keys{}, errors.New("there is no key in it: " + mend)
	}
	if len(keys) > 2 {
		return Keys{}, fmt.Errorf("it has %d keys: write the key on the first line, and the one before it on the second while it is replaced", len(keys))
	}
	for i, key := range keys {
		if len(key) < minKeyLength || len(key) > maxKeyLength {
			return Keys{}, fmt.Errorf("key %d has %d characters, want %d to %d: %s", i+1, len(key), minKeyLength, maxKeyLength, mend)
		}
	}
	return Keys{current: keys[0], previous: strings.Join(keys[1:], "")}, nil
}

// openKey returns the log's own key, which the engine encrypts with; it is empty
// for a log in plaintext. It refuses what the engine would destroy: it deletes
// the blocks whose keys it cannot read.
//
// The log's own key never changes, so that the engine never rewrites a log: that
// it does in place, and a crash in the middle of it loses events.
func openKey(dir string, keys Keys, logger *slog.Logger) (string, error) {
	path := filepath.Join(dir, keyFile)
	sealed, err := os.ReadFile(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return newKey(dir, keys)
	case err != nil:
		return "", fmt.Errorf("%w cannot be read: %w", ErrKey, err)
	case keys.current == "":
		return "", fmt.Errorf("%w is missing: %s is encrypted: give the file with its key with --encryption-key-file", ErrKey, dir)
	}
	if strings.Contains(string(sealed), keyName) && !strings.Contains(string(sealed), keyFormat) {
		return "", fmt.Errorf("%w is kept in a way that this version of ordergate does not know: use the version that wrote %s", ErrKey, path)
	}
	key, err := unseal(string(sealed), keys.current)
	if err == nil {
		return key, nil
	}
	if keys.previous != "" {
		if key, previousErr := unseal(string(sealed), keys.previous); previousErr == nil {
			if err := checkFormat(dir, key); err != nil {
				return "", err
			}
			if err := writeKey(dir, key, keys.current); err != nil {
				return "", err
			}
			logger.Info("the log's key is sealed with the new key: the previous one can be taken out of the key file", "file", path)
			return key, nil
		}
	}
	return "", fmt.Errorf("%w does not fit: %s was encrypted with another one, or %s is damaged: put the key that it was used with into the file of --encryption-key-file "+
		"(on the second line, if the first is a new one), or restore %s from a backup", ErrKey, dir, path, keyFile)
}

// newKey makes the key of a new log.
func newKey(dir string, keys Keys) (string, error) {
	encrypted, err := filepath.Glob(filepath.Join(streamsDir(dir), "*", metaKeyName))
	if err != nil {
		return "", err
	}
	used, err := filepath.Glob(filepath.Join(streamsDir(dir), "*"))
	if err != nil {
		return "", err
	}
	switch {
	case len(encrypted) > 0:
		return "", fmt.Errorf("%w is gone: %s is encrypted, and %s is not there: restore that file from a backup", ErrKey, dir, filepath.Join(dir, keyFile))
	case keys.current == "":
		return "", nil
	case len(used) > 0:
		return "", fmt.Errorf("%w is new, and %s is in plaintext: encryption begins with an empty directory: `ordergate export` this one, and `ordergate import` "+
			"into another with the key; or go on without --encryption-key-file", ErrKey, dir)
	}
	key := randomKey()
	return key, writeKey(dir, key, keys.current)
}

func randomKey() string {
	key := make([]byte, 32)
	rand.Read(key) // never fails
	return hex.EncodeToString(key)
}

// writeKey seals the log's own key, and returns when it is on disk.
func writeKey(dir, key, with string) error {
	if err := writeDurably(filepath.Join(dir, keyFile), []byte(seal(key, with))); err != nil {
		return fmt.Errorf("write the log's encryption key: %w", err)
	}
	return nil
}

// writeDurably replaces a file as a whole.
func writeDurably(path string, content []byte) error {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(content); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

func seal(key, with string) string {
	salt := make([]byte, saltSize)
	rand.Read(salt)
	sealed := sealer(with, salt).Seal(salt, nil, []byte(key), []byte(keyFormat))
	return keyHeader + keyFormat + base64.StdEncoding.EncodeToString(sealed) + "\n"
}

func unseal(content, with string) (string, error) {
	encoded, ok := strings.CutPrefix(strings.TrimPrefix(content, keyHeader), keyFormat)
	sealed, err := base64.StdEncoding.DecodeString(strings.TrimSuffix(encoded, "\n"))
	if !ok || err != nil || len(sealed) < saltSize {
		return "", errors.New("malformed")
	}
	key, err := sealer(with, sealed[:saltSize]).Open(nil, nil, sealed[saltSize:], []byte(keyFormat))
	return string(key), err
}

// sealer is made for one message, that of its salt.
func sealer(with string, salt []byte) cipher.AEAD {
	key, err := hkdf.Key(sha256.New, []byte(with), salt, keyFormat, 32)
	if err != nil {
		panic(err) // the length is right
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err)
	}
	return aead
}
