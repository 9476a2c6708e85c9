package auth

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"regexp"
	"strings"
	"sync/atomic"

	"github.com/ordergate/ordergate/internal/subscription"
	"github.com/ordergate/ordergate/internal/watchfile"
)

// Config says where the access list is.
type Config struct {
	File string
	// PlaintextTokens takes tokens also from connections that others can read.
	PlaintextTokens bool
	Logger          *slog.Logger
}

// Access is the access list of the gateway, kept in step with its file. The
// zero value lets nobody in.
type Access struct {
	open            bool
	plaintextTokens bool
	logger          *slog.Logger
	files           *watchfile.Files
	current         atomic.Pointer[map[string]*Principal]
	handover        handover
}

// Everybody returns an access list by which everybody may do everything.
func Everybody() *Access { return &Access{open: true} }

// Load reads an access file. The error tells all that is wrong with it.
func Load(cfg Config) (*Access, error) {
	a := &Access{plaintextTokens: cfg.PlaintextTokens, logger: cfg.Logger, files: watchfile.New(cfg.File)}
	contents, err := a.files.Read()
	if err != nil {
		return nil, fmt.Errorf("--access-file: %w: \"ordergate tokens create\" makes one", err)
	}
	if err := a.use(contents); err != nil {
		return nil, err
	}
	return a, nil
}

// Watch keeps the list in step with its file until ctx ends.
func (a *Access) Watch(ctx context.Context) {
	if a.open {
		return
	}
	a.files.Watch(ctx, a.logger.With("what", "access file"), a.use)
}

// use puts the file's principals in the place of those before. Those that are
// the same stay; the others are not valid any more.
func (a *Access) use(contents [][]byte) error {
	file := a.files.Path(0)
	principals, err := parse(file, contents[0])
	if err != nil {
		return err
	}
	watchfile.WarnIfShared(a.logger, "the access file", file)
	before := a.principals()
	for key, p := range principals {
		if b := before[key]; b != nil && b.same(p) {
			principals[key] = b
		} else {
			p.valid, p.revoke = context.WithCancel(context.Background())
		}
	}
	a.current.Store(&principals)
	for key, b := range before {
		if principals[key] != b {
			b.revoke()
		}
	}
	a.logger.Info("access file read", "file", file, "principals", len(principals))
	return nil
}

// principals are those of now, by their credential's key.
func (a *Access) principals() map[string]*Principal {
	if current := a.current.Load(); current != nil {
		return *current
	}
	return nil
}

var (
	nameShape = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@-]{0,62}$`)
)

// parse reads an access file: NAME ROLE CREDENTIAL [SUBSCRIPTION,...] a line. An
// error tells every problem with its line, and quotes nothing that might be a
// token in the wrong place.
func parse(file string, content []byte) (map[string]*Principal, error) {
	principals := map[string]*Principal{}
	lines := map[string]int{} // where a name or credential was
	var problems []error
	number := 0
	for line := range bytes.Lines(content) {
		number++
		p, err := parseLine(string(line))
		if p == nil && err == nil {
			continue
		}
		if err == nil {
			for _, one := range []struct{ what, key string }{{"name", "name " + p.Name}, {"credential", p.credential}} {
				if lines[one.key] != 0 {
					err = errors.Join(err, fmt.Errorf("the %s is that of line %d too: each has its own", one.what, lines[one.key]))
				} else {
					lines[one.key] = number
				}
			}
		}
		for _, one := range each(err) {
			problems = append(problems, fmt.Errorf("%s line %d: %w", file, number, one))
		}
		if err == nil {
			principals[p.credential] = p
		}
	}
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	return principals, nil
}

// each returns the errors that were joined into one.
func each(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	if err == nil {
		return nil
	}
	return []error{err}
}

// parseLine returns nil for a line without a principal.
func parseLine(line string) (*Principal, error) {
	fields := strings.Fields(line)
	for i, field := range fields {
		if strings.HasPrefix(field, "#") {
			fields = fields[:i]
			break
		}
	}
	switch {
	case len(fields) == 0:
		return nil, nil
	case len(fields) < 3 || len(fields) > 4:
		return nil, fmt.Errorf("has %d fields: write NAME ROLE CREDENTIAL, and for a subscriber its subscriptions, with commas and no spaces", len(fields))
	}
	var subscriptions []string
	if len(fields) == 4 {
		subscriptions = strings.Split(fields[3], ",")
	}
	key, credentialErr := parseCredential(fields[2])
	p := &Principal{Name: fields[0], Role: roleNames[fields[1]], Subscriptions: subscriptions, credential: key}
	if err := errors.Join(p.check(), credentialErr); err != nil {
		return nil, errors.Join(flatten(err)...)
	}
	return p, nil
}

// flatten returns the single errors of joined ones.
func flatten(err error) (all []error) {
	for _, one := range each(err) {
		if _, joined := one.(interface{ Unwrap() []error }); joined {
			all = append(all, flatten(one)...)
		} else {
			all = append(all, one)
		}
	}
	return all
}

// check tells all that is wrong with a principal's name, role and subscriptions.
func (p *Principal) check() error {
	var problems []error
	if !nameShape.MatchString(p.Name) || strings.HasPrefix(p.Name, tokenPrefix) {
		problems = append(problems, errors.New("the name is none: write 1 to 63 letters, digits, and . _ @ - behind the first"))
	}
	switch {
	case p.Role == 0:
		problems = append(problems, errors.New("the role is none: write reader, subscriber or operator"))
	case p.Role == Subscriber && len(p.Subscriptions) == 0:
		problems = append(problems, errors.New("a subscriber needs the names of its subscriptions, with commas"))
	case p.Role != Subscriber && len(p.Subscriptions) > 0:
		problems = append(problems, fmt.Errorf("subscriptions are for the role subscriber: this is the role %s", p.Role))
	}
	for _, name := range p.Subscriptions {
		if !subscription.ValidName(name) {
			problems = append(problems, errors.New("a subscription's name is none: write small letters, digits and -, with commas between names and no spaces"))
			break
		}
	}
	return errors.Join(problems...)
}

var errCredential = errors.New("the credential is none: write sha256: and the token's SHA-256 in hex, or san: and a URI or DNS name of a client certificate")

func parseCredential(text string) (key string, err error) {
	if san, ok := strings.CutPrefix(text, "san:"); ok {
		switch {
		case san == "":
			return "", errCredential
		case strings.Contains(san, ":"):
			return uriKey(san), nil
		}
		return dnsKey(san), nil
	}
	digits, ok := strings.CutPrefix(text, "sha256:")
	if !ok {
		if isToken(text) {
			return "", errors.New("the credential is a token itself: write sha256: and its SHA-256 in hex; and make a new token, for this one was on disk")
		}
		return "", errCredential
	}
	hash, err := hex.DecodeString(digits)
	if err != nil || len(hash) != sha256.Size {
		return "", errors.New("the credential is no SHA-256: write sha256: and 64 hex digits")
	}
	return tokenKey([sha256.Size]byte(hash)), nil
}

// Line returns the line of an access file for the holder of a token.
func Line(name, role string, subscriptions []string, token string) (string, error) {
	p := &Principal{Name: name, Role: roleNames[role], Subscriptions: subscriptions}
	if err := p.check(); err != nil {
		return "", err
	}
	hash := sha256.Sum256([]byte(token))
	line := name + " " + role + " sha256:" + hex.EncodeToString(hash[:])
	if len(subscriptions) > 0 {
		line += " " + strings.Join(subscriptions, ",")
	}
	return line, nil
}

// Append adds a line to an access file, and makes the file when there is none.
// It leaves a file alone that has a problem, or would have one then.
func Append(path, line string) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	content, err := io.ReadAll(file)
	if err != nil {
		return err
	}
	line += "\n"
	if len(content) > 0 && content[len(content)-1] != '\n' {
		line = "\n" + line
	}
	if _, err := parse(path, append(content, line...)); err != nil {
		return fmt.Errorf("%w\nnothing was added", err)
	}
	// One write, which a gateway that reads meanwhile sees as a whole.
	if _, err := file.WriteString(line); err != nil {
		return err
	}
	return errors.Join(file.Sync(), file.Close())
}
