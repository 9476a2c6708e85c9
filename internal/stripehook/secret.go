package stripehook

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"
)

// maxSecrets bounds the work that one forged request can cost.
const maxSecrets = 8

// secretShape is what follows `whsec_`: 32 characters from the Dashboard, 64
// from the Stripe CLI. The bound is low so that a test may use a short one.
var secretShape = regexp.MustCompile(`^(?:(live|test):)?(whsec_[A-Za-z0-9+/=_-]{8,128})$`)

// Secret is the signing secret of one webhook endpoint at Stripe. It prints
// and logs as its label, never as its value.
type Secret struct {
	value string
	label string
	mode  string // `live` or `test`; empty for a secret of both
}

// ParseSecrets reads a comma-separated list of signing secrets, `whsec_…`
// each. Several are needed while one is rolled, and for a test-mode and a
// live-mode endpoint on one URL. All problems are reported together, by the
// place in the list and without the secret.
func ParseSecrets(list string) ([]Secret, error) {
	if strings.TrimSpace(list) == "" {
		return nil, errors.New("the webhook signing secret is empty: copy it (whsec_…) from the endpoint's page at https://dashboard.stripe.com/webhooks, or from the first line that `stripe listen` prints")
	}
	var (
		secrets  []Secret
		problems []error
	)
	for i, value := range strings.Split(list, ",") {
		value = strings.TrimSpace(value)
		switch {
		case value == "":
			problems = append(problems, fmt.Errorf("webhook signing secret %d is empty: remove the comma, or fill in the secret", i+1))
		case !secretShape.MatchString(value):
			problems = append(problems, fmt.Errorf("webhook signing secret %d %w", i+1, errShape))
		default:
			secrets = append(secrets, newSecret(value))
		}
	}
	return join(secrets, problems)
}

// ParseSecretFile reads the content of a file with one signing secret a line,
// where `#` begins a comment; there may be none. Problems are reported as by
// ParseSecrets, by the line.
func ParseSecretFile(content string) ([]Secret, error) {
	var (
		secrets  []Secret
		problems []error
		number   int
	)
	for line := range strings.Lines(content) {
		number++
		value, _, _ := strings.Cut(line, "#")
		value = strings.TrimSpace(value)
		switch {
		case value == "":
		case !secretShape.MatchString(value):
			problems = append(problems, fmt.Errorf("line %d %w", number, errShape))
		default:
			secrets = append(secrets, newSecret(value))
		}
	}
	return join(secrets, problems)
}

// JoinSecrets returns the secrets of several sources, each secret once.
func JoinSecrets(sources ...[]Secret) ([]Secret, error) {
	return join(slices.Concat(sources...), nil)
}

var errShape = errors.New("is malformed: want `whsec_`, after `live:` or `test:` if it signs for one mode only, and at least 8 letters and digits, as Stripe shows it (an API key or an endpoint id is something else)")

func join(all []Secret, problems []error) ([]Secret, error) {
	var secrets []Secret
	for _, s := range all {
		if !slices.Contains(secrets, s) {
			secrets = append(secrets, s)
		}
	}
	if len(secrets) > maxSecrets {
		problems = append(problems, fmt.Errorf("%d webhook signing secrets, at most %d: remove those that Stripe no longer uses", len(secrets), maxSecrets))
	}
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	return secrets, nil
}

func newSecret(value string) Secret {
	parts := secretShape.FindStringSubmatch(value)
	mode, value := parts[1], parts[2]
	sum := sha256.Sum256([]byte(value))
	return Secret{mode: mode, value: value, label: "whsec#" + hex.EncodeToString(sum[:4])}
}

// Label names the secret without telling it: `whsec#` and the first 8 hex
// digits of its SHA-256. It stays the same wherever the secret is used.
func (s Secret) Label() string { return s.label }

// Reveal returns the secret itself, for signing.
func (s Secret) Reveal() string { return s.value }

// String returns the label.
func (s Secret) String() string { return s.label }

// GoString returns the label, so that %#v does not tell the secret either.
func (s Secret) GoString() string { return s.label }

// LogValue logs the label.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.label) }

// Mode is the mode that the secret may sign for: `live` or `test`. Empty is both.
func (s Secret) Mode() string { return s.mode }

// Signs returns the secrets that may sign events of a mode.
func Signs(secrets []Secret, livemode bool) (allowed []Secret) {
	mode := "test"
	if livemode {
		mode = "live"
	}
	for _, s := range secrets {
		if s.mode == "" || s.mode == mode {
			allowed = append(allowed, s)
		}
	}
	return allowed
}
