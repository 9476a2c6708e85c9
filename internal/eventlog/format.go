package eventlog

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
)

const (
	// metadataFormat is the stream metadata with the version of all that is stored.
	// ARCHITECTURE.md says what it promises, and when it is raised.
	metadataFormat = "ordergate.format"
	format         = 1
	// metadataReader is the first version of ordergate that reads the format. A
	// format that follows the first one has it, so that older versions can say it.
	metadataReader = "ordergate.reader"
)

// checkFormat refuses a log that this version does not read, by what is in its
// files: before the engine, or anything else, changes one. Descriptions that
// cannot be read are for checkFiles.
func checkFormat(dir, key string) error {
	for _, name := range []string{inboxStream, ordersStream} {
		metadata, err := (&checker{dir: dir, key: key}).metadata(name)
		if err != nil {
			continue
		}
		if err := readable(metadata); err != nil {
			return fmt.Errorf("the log in %s %w; nothing in it was changed", dir, err)
		}
	}
	return nil
}

// metadata reads the metadata in a stream's description.
func (c *checker) metadata(name string) (map[string]string, error) {
	dir := filepath.Join(streamsDir(c.dir), name)
	meta, err := os.ReadFile(filepath.Join(dir, metaName))
	if err != nil {
		return nil, err
	}
	if c.key != "" {
		key, _, err := c.blockKey(filepath.Join(dir, metaKeyName), name)
		if err != nil {
			return nil, err
		}
		if meta, _, err = open(key, meta); err != nil {
			return nil, err
		}
	}
	var description struct {
		Metadata map[string]string `json:"metadata"`
	}
	err = json.Unmarshal(meta, &description)
	return description.Metadata, err
}

// readable returns nil for the format that this version reads, else which version
// is to be used.
func readable(metadata map[string]string) error {
	stored := metadata[metadataFormat]
	if stored == strconv.Itoa(format) {
		return nil
	}
	use := "the version that wrote it"
	if n, err := strconv.Atoi(stored); err == nil && n > format {
		use = "the newer version that wrote it, or a later one"
		if reader := metadata[metadataReader]; reader != "" {
			use = reader + " or later"
		}
	}
	return &formatError{stored, use}
}

// formatError says that this version does not read a log.
type formatError struct{ stored, use string }

func (e *formatError) Error() string {
	return fmt.Sprintf("is in format %q, this version of ordergate reads %d: use %s", e.stored, format, e.use)
}
