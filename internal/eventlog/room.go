package eventlog

import (
	"context"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	// roomInterval is how often the room for events is looked at, and said how
	// little is left.
	roomInterval = time.Hour
	// A stream is nearly full at fullShare of its limit; a disk, when less than
	// freeShare of it and less than freeBytes are free.
	fullShare = 0.9
	freeShare = 0.1
	freeBytes = 5 << 30
)

// Room is how much of what it may take a stream has taken.
type Room struct {
	// Stream is `inbox` or `orders`.
	Stream string
	// Events is how many events are kept.
	Events uint64
	// Bytes is what they take on disk, MaxBytes what they may; 0 is without limit.
	Bytes, MaxBytes int64
	// Oldest is when the oldest event was stored, in UTC; zero when there is none.
	Oldest time.Time
	// MaxAge is how long events are kept; 0 is for good.
	MaxAge time.Duration
}

// NearlyFull reports whether the stream will soon refuse events.
func (r Room) NearlyFull() bool {
	return r.MaxBytes > 0 && float64(r.Bytes) >= fullShare*float64(r.MaxBytes)
}

// Disk is the disk that holds the log, in bytes.
type Disk struct{ Free, Total uint64 }

// NearlyFull reports whether there is little room left.
func (d Disk) NearlyFull() bool {
	return d.Total > 0 && d.Free < freeBytes && float64(d.Free) < freeShare*float64(d.Total)
}

// Rooms returns how much room the streams have.
func (l *Log) Rooms(ctx context.Context) ([]Room, error) {
	e, err := l.current()
	if err != nil {
		return nil, err
	}
	return e.rooms(ctx)
}

func (e *engine) rooms(ctx context.Context) (rooms []Room, err error) {
	for _, s := range []struct {
		name   string
		stream jetstream.Stream
	}{{"inbox", e.inbox}, {"orders", e.orders}} {
		info, err := streamInfo(ctx, s.stream)
		if err != nil {
			return nil, err
		}
		room := Room{
			Stream: s.name, Events: info.State.Msgs, Bytes: int64(info.State.Bytes), MaxBytes: max(info.Config.MaxBytes, 0), MaxAge: info.Config.MaxAge,
		}
		if info.State.Msgs > 0 {
			room.Oldest = info.State.FirstTime.UTC()
		}
		rooms = append(rooms, room)
	}
	return rooms, nil
}

// watchRoom says from time to time when there is little room left, while there
// still is some.
func (e *engine) watchRoom(dir string) {
	tick := time.NewTicker(roomInterval)
	defer tick.Stop()
	for {
		e.warnOfRoom(dir)
		select {
		case <-e.dead.Done():
			return
		case <-tick.C:
		}
	}
}

func (e *engine) warnOfRoom(dir string) {
	ctx, cancel := e.alive(context.Background())
	defer cancel()
	rooms, err := e.rooms(ctx)
	if err != nil {
		return // that the log is away is said elsewhere
	}
	for _, room := range rooms {
		if room.NearlyFull() {
			e.logger.Error("a stream is nearly full: it will refuse new events, and none of the old ones goes before its time",
				"stream", room.Stream, "bytes", room.Bytes, "max_bytes", room.MaxBytes, "oldest", room.Oldest,
				"mend", "raise --"+room.Stream+"-max-bytes, or keep events for less long with --"+room.Stream+"-max-age")
		}
	}
	if disk, err := DiskOf(dir); err == nil && disk.NearlyFull() {
		e.logger.Error("the disk is nearly full: when it is full, events are refused until there is room", "free_bytes", disk.Free, "total_bytes", disk.Total,
			"mend", "give the data directory more room")
	}
}
