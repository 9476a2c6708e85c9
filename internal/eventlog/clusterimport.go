package eventlog

import "fmt"

// metadataUnfinished is on each stream that an import makes in a cluster, until all of
// them are whole. Its value is the import's.
const metadataUnfinished = "ordergate.unfinished"

// refuseMarked returns ErrUnfinished for a stream that an import began.
func refuseMarked(metadata map[string]string) error {
	if metadata[metadataUnfinished] == "" {
		return nil
	}
	return fmt.Errorf("%w: what is in NATS is not whole: run `ordergate import` with --nats-url again", ErrUnfinished)
}
