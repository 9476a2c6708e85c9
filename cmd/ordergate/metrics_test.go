package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/config"
	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/sample"
	"github.com/ordergate/ordergate/internal/stripetest"
)

// ownMetric is the name of a metric that is not of the libraries' (go_, process_).
var ownMetric = regexp.MustCompile(`\b(?:ordergate|grpc_server)_[a-z_]+[a-z]`)

// exported returns the names of the metrics of a gateway in which there is
// something of everything, as Prometheus reads them.
func exported(t *testing.T) []string {
	t.Helper()
	g := startGateway(t, testSecret, func(c *config.Config) {
		c.StripeAPIKey, c.StripeAPIBase = []string{"rk_test_metrics"}, stripetest.NewServer(t).URL
	})
	order := &ordergatev1.Order{Id: "cs_live_1", Livemode: new(true), Directive: ordergatev1.Directive_DIRECTIVE_SHIP}
	if _, err := g.log.AppendOrder(t.Context(), &ordergatev1.OrderEvent{Id: "cs_live_1.1", Order: order}, 0); err != nil {
		t.Fatal(err)
	}
	if err := g.log.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := g.subscriptions.Create(t.Context(), &ordergatev1.Subscription{Name: "shipping"}, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := ordergatev1.NewOrderServiceClient(g.conn).GetOrder(t.Context(), &ordergatev1.GetOrderRequest{OrderId: "cs_live_1"}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var names []string
	// Events are unconverted for a moment only: store more until a scrape finds one.
	waitFor(ctx, t, "an unconverted event is measured", func() bool {
		for range 100 {
			story, err := sample.Story(sample.Completed, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := g.log.AppendInbox(ctx, eventlog.RawEvent{ID: story[0].ID, Body: story[0].Body}); err != nil {
				t.Fatal(err)
			}
		}
		names = scrape(t, g)
		return slices.Contains(names, "ordergate_pipeline_oldest_unconverted_timestamp_seconds")
	})
	return names
}

// scrape returns the names of the metrics that a gateway exports at this moment.
func scrape(t *testing.T, g *gateway) []string {
	t.Helper()
	response, err := http.Get("http://" + g.adminListener.Addr().String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	names := map[string]bool{}
	for _, line := range strings.Split(readAll(t, response.Body), "\n") {
		if fields := strings.Fields(line); len(fields) > 2 && fields[1] == "TYPE" && ownMetric.MatchString(fields[2]) {
			names[fields[2]] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// The README's table of metrics is what a running gateway exports, and alerts and
// dashboard use nothing else.
func TestMetricsAreWhatIsWritten(t *testing.T) {
	names := exported(t)
	var table []string
	for _, row := range regexp.MustCompile("(?m)^\\| `((?:ordergate|grpc_server)_[a-z_]+)[`{]").FindAllStringSubmatch(readme(t), -1) {
		table = append(table, row[1])
	}
	slices.Sort(table)
	if diff := cmp.Diff(names, table); diff != "" {
		t.Errorf("the README's table (-exported +table):\n%s", diff)
	}
	for _, file := range []string{"prometheus/alerts.yml", "prometheus/alerts_test.yml", "grafana/ordergate.json"} {
		used := ownMetric.FindAllString(deployed(t, file), -1)
		if len(used) == 0 {
			t.Errorf("%s uses no metrics", file)
		}
		for _, name := range used {
			series := regexp.MustCompile(`_(bucket|sum|count)$`).ReplaceAllString(name, "")
			if !slices.Contains(names, name) && !slices.Contains(names, series) {
				t.Errorf("%s uses %s, which is not exported", file, name)
			}
		}
	}
}

func deployed(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "deploy", filepath.FromSlash(file)))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// promtool returns where Prometheus's tool is. It is not to be had everywhere, so
// that only the gate insists on it.
func promtool(t *testing.T) string {
	t.Helper()
	for _, name := range []string{filepath.Join("..", "..", ".ci", "bin", "promtool"), "promtool"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	const missing = "promtool is neither in .ci/bin nor in PATH: run `bash .ci/install`"
	if os.Getenv("CI") == "true" {
		t.Fatal(missing)
	}
	t.Skip(missing)
	return ""
}

// dashboard is what is checked of Grafana's.
type dashboard struct {
	UID        string
	Templating struct {
		List []struct {
			Name, Type string
			Datasource struct{ UID string }
		}
	}
	Panels []struct {
		ID                       int
		Type, Title, Description string
		Datasource               struct{ UID string }
		GridPos                  struct{ H, W, X, Y int }
		FieldConfig              struct{ Defaults struct{ Unit string } }
		Targets                  []struct {
			Expr       string
			Datasource struct{ UID string }
		}
	}
}

// The dashboard can be imported anywhere: it names no data source and no instance,
// its panels have what a reader needs, beside each other, and its expressions are
// PromQL.
func TestDashboard(t *testing.T) {
	var d dashboard
	if err := json.Unmarshal([]byte(deployed(t, "grafana/ordergate.json")), &d); err != nil {
		t.Fatal(err)
	}
	const source = "${datasource}"
	if len(d.Templating.List) == 0 || d.Templating.List[0].Type != "datasource" || "${"+d.Templating.List[0].Name+"}" != source {
		t.Errorf("the first variable is not the data source: %+v", d.Templating.List)
	}
	for _, v := range d.Templating.List[1:] {
		if v.Datasource.UID != source {
			t.Errorf("the variable %s asks %q", v.Name, v.Datasource.UID)
		}
	}
	ids := map[int]bool{}
	taken := map[[2]int]string{}
	rules := "groups:\n- name: dashboard\n  rules:\n"
	for _, p := range d.Panels {
		if p.ID == 0 || ids[p.ID] {
			t.Errorf("%s: the id %d is not its own", p.Title, p.ID)
		}
		ids[p.ID] = true
		if p.GridPos.X+p.GridPos.W > 24 || p.GridPos.W == 0 || p.GridPos.H == 0 {
			t.Errorf("%s: does not fit the grid: %+v", p.Title, p.GridPos)
		}
		for x := range p.GridPos.W {
			for y := range p.GridPos.H {
				at := [2]int{p.GridPos.X + x, p.GridPos.Y + y}
				if taken[at] != "" {
					t.Errorf("%s lies on %s", p.Title, taken[at])
				}
				taken[at] = p.Title
			}
		}
		if p.Type == "row" {
			continue
		}
		if p.Title == "" || p.Description == "" || p.FieldConfig.Defaults.Unit == "" || p.Datasource.UID != source || len(p.Targets) == 0 {
			t.Errorf("panel %d %q: want a title, a description, a unit, the data source %s and targets", p.ID, p.Title, source)
		}
		for i, target := range p.Targets {
			if target.Datasource.UID != source {
				t.Errorf("%s asks %q", p.Title, target.Datasource.UID)
			}
			if strings.Count(target.Expr, "{") != strings.Count(target.Expr, `{job=~"$job", instance=~"$instance"`) {
				t.Errorf("%s does not keep to the chosen jobs and instances: %s", p.Title, target.Expr)
			}
			expr, err := json.Marshal(strings.ReplaceAll(target.Expr, "$__rate_interval", "5m"))
			if err != nil {
				t.Fatal(err)
			}
			rules += fmt.Sprintf("  - record: panel_%d_%d\n    expr: %s\n", p.ID, i, expr)
		}
	}
	file := filepath.Join(t.TempDir(), "rules.yml")
	if err := os.WriteFile(file, []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), promtool(t), "check", "rules", file).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// Every alert says what to do, and is tested; .ci/run runs the tests.
func TestAlertsSayWhatToDo(t *testing.T) {
	tests := deployed(t, "prometheus/alerts_test.yml")
	for _, rule := range strings.Split(deployed(t, "prometheus/alerts.yml"), "- alert: ")[1:] {
		name, _, _ := strings.Cut(rule, "\n")
		for _, want := range []string{"severity: ", "summary: ", "description: "} {
			if !strings.Contains(rule, want) {
				t.Errorf("%s has no %s", name, want)
			}
		}
		if !strings.Contains(tests, `"`+name+`"`) {
			t.Errorf("%s is not tested", name)
		}
	}
}
