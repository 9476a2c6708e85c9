package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/gofrs/flock"

	"github.com/ordergate/ordergate/internal/config"
	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/telemetry"
)

const (
	// standardStream is what is given for a file to read or write a pipe.
	standardStream = "-"
	// progressAfter is when something takes long enough for a bar, and
	// progressInterval how often that is drawn.
	progressAfter    = time.Second
	progressInterval = 100 * time.Millisecond
)

type exportCommand struct {
	DataDir           string        `name:"data-dir" env:"ORDERGATE_DATA_DIR" default:"ordergate-data" placeholder:"DIR" help:"The data directory of the gateway, which must be stopped."`
	EncryptionKeyFile string        `name:"encryption-key-file" env:"ORDERGATE_ENCRYPTION_KEY_FILE" placeholder:"FILE" help:"The file with the key, if the directory is encrypted."`
	InboxMaxAge       time.Duration `name:"inbox-max-age" env:"ORDERGATE_INBOX_MAX_AGE" default:"840h" help:"As the gateway has it: what is older need not be there."`
	OrdersMaxAge      time.Duration `name:"orders-max-age" env:"ORDERGATE_ORDERS_MAX_AGE" default:"9600h" help:"As the gateway has it."`
	JSON              bool          `name:"json" help:"Print one JSON object in the end."`
	File              string        `arg:"" help:"The archive to write, which must not exist yet; - for standard output."`
}

// Help is the longer text of `ordergate export --help`.
func (exportCommand) Help() string {
	return `For moving house, for a backup, and for a data directory that is to be encrypted, or not to be any more: ordergate import makes a data directory of the archive in which everything is as it was. Stop the gateway first. Nothing in its directory is changed; every event is read, and its checksum verified.

The archive is not encrypted, and it holds customers' names and addresses: send it through something that encrypts, or keep it as you keep the orders. What is erased later stays in it.

Examples:
  ordergate export --data-dir /var/lib/ordergate orders.archive
  ordergate export --data-dir /var/lib/ordergate - | age -r age1… > orders.archive.age
  ordergate export --data-dir /var/lib/ordergate - | ssh new-host ordergate import --data-dir /var/lib/ordergate -`
}

// Run writes the archive beside its place first: under its name there is never a part
// of one.
func (x *exportCommand) Run(ctx context.Context, c console) (err error) {
	logger := telemetry.NewLogger(c.stderr, "auto", "warn")
	keys, err := loadEncryption(x.EncryptionKeyFile, logger)
	if err != nil {
		return err
	}
	if _, err := os.Stat(x.DataDir); err != nil {
		return fmt.Errorf("--data-dir: %w", err)
	}
	if x.File == standardStream && telemetry.IsTerminal(c.stdout) {
		return errors.New("the archive would go to the terminal: send it into a file or another program, or name a file instead of -")
	}
	if _, err := os.Lstat(x.File); x.File != standardStream && err == nil {
		return fmt.Errorf("%s exists: give another name, or remove it", x.File)
	}
	log, err := eventlog.Open(ctx, eventlog.Config{
		Dir: x.DataDir, InboxMaxAge: x.InboxMaxAge, OrdersMaxAge: x.OrdersMaxAge, AsIs: true, Keys: keys, Logger: logger,
	})
	if err != nil {
		return stopped(ctx, err)
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	var out archiveWriter = newPipeTo(ctx, c.stdout)
	if x.File != standardStream {
		if err := removeUnfinished(x.File, c.stderr); err != nil {
			return err
		}
		if out, err = newFileAt(x.File); err != nil {
			return err
		}
	}
	progress := &moveProgress{line: progressLine{out: c.stderr, terminal: telemetry.IsTerminal(c.stderr)}, began: time.Now()}
	figures, err := log.Export(ctx, out, version(), progress.show)
	progress.clear()
	if err = errors.Join(err, out.finish(err == nil)); err != nil {
		return stopped(ctx, err)
	}
	report := c.stdout
	if x.File == standardStream {
		report = c.stderr
	}
	return printFigures(report, x.JSON, "Written", x.File, figures)
}

type importCommand struct {
	DataDir           string        `name:"data-dir" env:"ORDERGATE_DATA_DIR" placeholder:"DIR" help:"The data directory to make: empty, or not there yet (ordergate-data)."`
	EncryptionKeyFile string        `name:"encryption-key-file" env:"ORDERGATE_ENCRYPTION_KEY_FILE" placeholder:"FILE" help:"Encrypt it with the key in this file (openssl rand -base64 32), whatever the exported one was."`
	NATS              config.NATS   `embed:""`
	Limits            config.Limits `embed:""`
	JSON              bool          `name:"json" help:"Print one JSON object in the end."`
	File              string        `arg:"" help:"The archive; - for standard input."`
}

// Help is the longer text of `ordergate import --help`.
func (importCommand) Help() string {
	return `It makes a data directory from what ordergate export wrote, or, with --nats-url, a log in a NATS cluster that several gateways share. Events, orders, their sequences and times are as they were, and so are subscriptions with their places, dead letters, and what is parked: tokens that clients have stay good, and an event that was stored before is still a duplicate.

The archive is verified to its last byte. It is all or nothing: when it fails or is interrupted, no gateway opens what there is, and it can be run again. Start one gateway only of the two: with both, Stripe's events would part.

Into a cluster it goes as an account that has no log yet; one that is there is never touched. Ages and bounds are those of serve, and are set in the end; a data directory gets them when serve opens it. The servers must be NATS 2.15 or later.

Examples:
  ordergate import --data-dir /var/lib/ordergate orders.archive
  ordergate import --nats-url nats://nats-1:4222,nats://nats-2:4222,nats://nats-3:4222 orders.archive
  age -d -i key.txt orders.archive.age | ordergate import --data-dir /var/lib/ordergate --encryption-key-file ordergate.key -`
}

func (m *importCommand) Run(ctx context.Context, c console) error {
	logger := telemetry.NewLogger(c.stderr, "auto", "warn")
	into, where, err := m.target(logger)
	if err != nil {
		return err
	}
	var in io.Reader
	if m.File == standardStream {
		if telemetry.IsTerminal(c.stdin) {
			return errors.New("the archive would come from the terminal: send a file or another program's output in, or name a file instead of -")
		}
		in = interruptible(ctx, c.stdin)
	} else {
		file, err := os.Open(m.File)
		if err != nil {
			return err
		}
		defer file.Close()
		in = file
	}
	progress := &moveProgress{line: progressLine{out: c.stderr, terminal: telemetry.IsTerminal(c.stderr)}, began: time.Now()}
	figures, err := eventlog.Import(ctx, into, in, progress.show)
	progress.clear()
	if err != nil {
		return stopped(ctx, err)
	}
	return printFigures(c.stdout, m.JSON, "Imported into", where, figures)
}

// target is the log to make, and what it is called.
func (m *importCommand) target(logger *slog.Logger) (into eventlog.Config, where string, _ error) {
	cluster := m.NATS.Cluster()
	if cluster == nil {
		keys, err := loadEncryption(m.EncryptionKeyFile, logger)
		where = cmp.Or(m.DataDir, defaultDataDir)
		return eventlog.Config{Dir: where, Keys: keys, Logger: logger}, where, errors.Join(m.NATS.Check(), err)
	}
	shared := config.Config{Limits: m.Limits, NATS: m.NATS, DataDir: m.DataDir, EncryptionKeyFile: m.EncryptionKeyFile}
	return logConfig(shared, eventlog.Keys{}, logger), cluster.Redacted(), errors.Join(m.Limits.Check(), shared.CheckStore())
}

// stopped is err, unless it is only that the command was told to stop.
func stopped(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return errStopped
	}
	return err
}

func printFigures(out io.Writer, asJSON bool, what, where string, f eventlog.Figures) error {
	if asJSON {
		return json.NewEncoder(out).Encode(f)
	}
	s := newSheet(out)
	s.field(what, where)
	s.field("Log", f.LogID)
	s.field("Events", fmt.Sprint(f.Events))
	s.field("Orders", fmt.Sprintf("%d, with %d events", f.Orders, f.OrderEvents))
	s.field("Subscriptions", fmt.Sprint(f.Subscriptions))
	return s.Flush()
}

// moveProgress shows how far a command is, when it takes long.
type moveProgress struct {
	line  progressLine
	began time.Time
	shown time.Time
}

func (p *moveProgress) show(done, total uint64) {
	now := time.Now()
	if now.Sub(p.began) < progressAfter || now.Sub(p.shown) < progressInterval {
		return
	}
	p.shown = now
	p.line.show(int64(done), int64(total), fmt.Sprintf("%d of %d messages", done, total))
}

func (p *moveProgress) clear() {
	if !p.shown.IsZero() {
		p.line.clear()
	}
}

// archiveWriter is where an archive goes. finish is to be called once, also after a
// failure.
type archiveWriter interface {
	io.Writer
	finish(whole bool) error
}

// fileAt is a file that has its name when it is whole, and on disk.
type fileAt struct {
	*os.File
	name string
	lock *flock.Flock // until the file has its name
}

// unfinishedPrefix begins the names of the files of exports that are not whole.
const unfinishedPrefix = ".ordergate-export-"

// removeUnfinished removes the files of exports that were killed: they hold orders in plaintext.
// The file of an export that is under way is locked.
func removeUnfinished(name string, out io.Writer) error {
	left, err := filepath.Glob(filepath.Join(filepath.Dir(name), unfinishedPrefix+"*"))
	if err != nil {
		return err
	}
	for _, file := range left {
		lock := flock.New(file)
		free, err := lock.TryLock()
		if err != nil || !free {
			continue
		}
		err = os.Remove(file)
		if err = errors.Join(err, lock.Close()); err != nil {
			return fmt.Errorf("remove the unfinished export %s: %w", file, err)
		}
		fmt.Fprintf(out, "removed %s: an interrupted export left it, with orders in plaintext\n", file)
	}
	return nil
}

func newFileAt(name string) (*fileAt, error) {
	file, err := os.CreateTemp(filepath.Dir(name), unfinishedPrefix+"*") // mode 0600
	if err != nil {
		return nil, err
	}
	lock := flock.New(file.Name())
	if _, err := lock.TryLock(); err != nil {
		return nil, errors.Join(err, file.Close(), os.Remove(file.Name()))
	}
	return &fileAt{file, name, lock}, nil
}

func (f *fileAt) finish(whole bool) error {
	defer f.lock.Close()
	defer os.Remove(f.Name()) // which is gone when it was renamed
	defer f.Close()
	if !whole {
		return nil
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), f.name); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(f.name))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// pipeTo hands on what is written, and gives up when ctx ends, which a write to a pipe
// that nobody reads does not.
type pipeTo struct {
	*io.PipeWriter
	copied chan error
}

func newPipeTo(ctx context.Context, out io.Writer) *pipeTo {
	read, write := io.Pipe()
	p := &pipeTo{write, make(chan error, 1)}
	context.AfterFunc(ctx, func() { read.CloseWithError(ctx.Err()) })
	go func() {
		_, err := io.Copy(out, read)
		read.CloseWithError(err)
		p.copied <- err
	}()
	return p
}

func (p *pipeTo) finish(whole bool) error {
	p.Close()
	if !whole { // what is being written may never come to its end
		return nil
	}
	return <-p.copied
}

// interruptible is what in has to say, until ctx ends, also in the middle of a read.
func interruptible(ctx context.Context, in io.Reader) io.Reader {
	read, write := io.Pipe()
	context.AfterFunc(ctx, func() { read.CloseWithError(ctx.Err()) })
	go func() {
		_, err := io.Copy(write, in)
		write.CloseWithError(err)
	}()
	return read
}
