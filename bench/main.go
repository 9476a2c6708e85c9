// Command bench measures ordergate beside what one would use instead, on one
// machine and in one go: `go run ./bench`. It prints medians, and ratios within
// the same run; bench/README.md says what they mean, and what was tried.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
)

// options are the command line.
type options struct {
	JSON   bool          `name:"json" help:"Print the results as JSON."`
	Only   []string      `name:"only" placeholder:"SUITE,..." help:"Only these suites: ingest, latency, fanout, consume, scale, forged."`
	Rounds int           `name:"rounds" default:"5" help:"How often each contender has its turn; what is printed is the median."`
	Time   time.Duration `name:"time" default:"8s" help:"How long a turn lasts at most."`
	Events int           `name:"events" default:"60000" help:"How many events a turn has at most."`
	Orders int           `name:"orders" default:"1000000" help:"How many orders the suite scale stores."`
	Dir    string        `name:"dir" placeholder:"DIR" help:"Where the contenders keep their data: on the disk that is to be measured (default: a temporary directory)."`
	Skip   []string      `name:"skip" placeholder:"CONTENDER,..." help:"Leave these out: nextjs, postgres."`

	Quick   bool   `name:"quick" help:"Little of everything but nextjs, to see that it works; its figures say nothing."`
	Against string `name:"against" placeholder:"FILE" help:"Compare with the results of an earlier run, saved with --json."`
	Plot    string `name:"plot" placeholder:"FILE.svg" help:"Draw the points of the suite scale; they are written beside it as FILE.csv."`

	Serve string `name:"serve" hidden:"" help:"Be a contender."`
}

// suite is a part of the bench.
type suite struct {
	name string
	run  func(context.Context, *bench) error
}

var suites = []suite{
	{"ingest", ingest},
	{"latency", latency},
	{"fanout", fanout},
	{"consume", consume},
	{"scale", scale},
	{"forged", forged},
}

// What --quick makes of the numbers.
const (
	quickRounds = 2
	quickTime   = 2 * time.Second
	quickEvents = 2_000
	quickOrders = 10_000
)

// bench is one run.
type bench struct {
	options
	work    string // a directory of this run's own
	gateway string // the binary of ordergate
	report  report
	before  []*row // of an earlier run
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

const (
	minEvents = 500
	minOrders = 10_000
)

func run(ctx context.Context) (err error) {
	b := &bench{}
	kong.Parse(&b.options, kong.Name("bench"), kong.Description("Measures ordergate beside what one would use instead."))
	if b.Serve != "" {
		return serveContender(ctx, b.Serve)
	}
	if b.Rounds < 1 || b.Events < minEvents || b.Orders < minOrders || b.Time < time.Second {
		return fmt.Errorf("--rounds, --events, --orders and --time: at least 1, %d, %d and 1s", minEvents, minOrders)
	}
	if b.Quick {
		b.Rounds, b.Time, b.Events, b.Orders = min(b.Rounds, quickRounds), min(b.Time, quickTime), min(b.Events, quickEvents), min(b.Orders, quickOrders)
		b.Skip = append(b.Skip, "nextjs")
	}
	if b.Against != "" { // before anything is measured: a bad file is told at once
		if b.before, err = readRows(b.Against); err != nil {
			return fmt.Errorf("--against: %w", err)
		}
	}
	for _, name := range b.Only {
		if !slices.ContainsFunc(suites, func(s suite) bool { return s.name == name }) {
			return fmt.Errorf("--only: there is no suite %q", name)
		}
	}
	if b.work, err = os.MkdirTemp(b.Dir, "ordergate-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.work)
	if err := os.Chmod(b.work, 0o755); err != nil { // PostgreSQL runs as another user
		return err
	}
	if err := b.build(ctx); err != nil {
		return err
	}
	for _, s := range suites {
		if len(b.Only) > 0 && !slices.Contains(b.Only, s.name) {
			continue
		}
		// One that fails takes nothing from the others.
		if failed := s.run(ctx, b); failed != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", s.name, failed))
			b.say("%s failed: %v", s.name, failed)
		}
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(err, b.print())
}

func (b *bench) skips(contender string) bool { return slices.Contains(b.Skip, contender) }

// say tells on standard error what happens.
func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s  %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}

// row is a measured value: of each round, and what is said of it.
type row struct {
	Suite  string    `json:"suite"`
	Name   string    `json:"name"`
	Unit   string    `json:"unit"`
	Values []float64 `json:"values"`
	Median float64   `json:"median"`
	// Goal is what a ratio, or a value by itself, is to reach; empty when there is none.
	Goal  string   `json:"goal,omitempty"`
	Ratio *float64 `json:"ratio,omitempty"`
	Met   *bool    `json:"met,omitempty"`
}

// value is what the row says.
func (r *row) value() float64 {
	if r.Ratio != nil {
		return *r.Ratio
	}
	return r.Median
}

type report struct{ rows []*row }

// add notes a value of a round.
func (r *report) add(suite, name, unit string, value float64) {
	found := r.find(suite, name)
	if found == nil {
		found = &row{Suite: suite, Name: name, Unit: unit}
		r.rows = append(r.rows, found)
	}
	found.Values = append(found.Values, value)
	found.Median = median(found.Values)
}

func (r *report) find(suite, name string) *row {
	for _, row := range r.rows {
		if row.Suite == suite && row.Name == name {
			return row
		}
	}
	return nil
}

// goal compares two medians: most is what the ratio may be at most, instead of at
// least.
func (r *report) goal(suite, what, name, base string, want float64, most bool) {
	a, of := r.find(suite, name), r.find(suite, base)
	if a == nil || of == nil || of.Median == 0 {
		return
	}
	ratio := a.Median / of.Median
	met := ratio >= want
	sign := "≥"
	if most {
		met, sign = ratio <= want, "≤"
	}
	r.rows = append(r.rows, &row{Suite: suite, Name: what, Goal: fmt.Sprintf("%s %g", sign, want), Ratio: &ratio, Met: &met})
}

// bound says what a median is to be at most, by itself.
func (r *report) bound(suite, what, name string, want float64) {
	a := r.find(suite, name)
	if a == nil {
		return
	}
	value, met := a.Median, a.Median <= want
	r.rows = append(r.rows, &row{Suite: suite, Name: what, Unit: a.Unit, Goal: fmt.Sprintf("≤ %g %s", want, a.Unit), Ratio: &value, Met: &met})
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	if n%2 == 1 {
		return sorted[n/2]
	}
	return (sorted[n/2-1] + sorted[n/2]) / 2
}

// readRows reads what --json printed.
func readRows(file string) (rows []*row, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return rows, json.Unmarshal(text, &rows)
}

func (b *bench) print() error {
	if b.JSON {
		encoder := json.NewEncoder(os.Stdout)
		encoder.SetIndent("", "  ")
		if err := encoder.Encode(b.report.rows); err != nil {
			return err
		}
	}
	out := os.Stdout
	if b.JSON {
		out = os.Stderr
	}
	suite := ""
	for _, r := range b.report.rows {
		if r.Suite != suite {
			suite = r.Suite
			fmt.Fprintf(out, "\n%s\n", strings.ToUpper(suite))
		}
		var said string
		switch {
		case r.Goal != "" && *r.Met:
			said = fmt.Sprintf("%.3g  goal %s: met", r.value(), r.Goal)
		case r.Goal != "":
			said = fmt.Sprintf("%.3g  goal %s: missed", r.value(), r.Goal)
		default:
			said = fmt.Sprintf("%.5g %s", r.value(), r.Unit)
			if len(r.Values) > 1 {
				said += fmt.Sprintf("  %.5g … %.5g", slices.Min(r.Values), slices.Max(r.Values))
			}
		}
		fmt.Fprintf(out, "  %-62s %s%s\n", r.Name, said, b.change(r))
	}
	return nil
}

// change says what an earlier run had for a row.
func (b *bench) change(r *row) string {
	if b.Against == "" {
		return ""
	}
	old := (&report{b.before}).find(r.Suite, r.Name)
	if old == nil {
		return "  (new)"
	}
	if old.value() == 0 {
		return "  (was 0)"
	}
	return fmt.Sprintf("  (was %.5g: %+.1f %%)", old.value(), 100*(r.value()/old.value()-1))
}

// dir makes a directory for one contender's data.
func (b *bench) dir(name string) (string, error) {
	dir, err := os.MkdirTemp(b.work, name+"-")
	if err != nil {
		return "", err
	}
	return filepath.Abs(dir)
}
