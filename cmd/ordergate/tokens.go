package main

import (
	"fmt"

	"github.com/ordergate/ordergate/internal/auth"
)

type tokensCommands struct {
	Create createTokenCommand `cmd:"" help:"Make a token for somebody, and its line for the access file."`
}

type createTokenCommand struct {
	Name         string   `arg:"" help:"Who gets it: a name of its own in the access file."`
	Role         string   `name:"role" required:"" enum:"reader,subscriber,operator" help:"What it may do: reader (see orders and subscriptions), subscriber (also consume its own subscriptions), operator (everything)."`
	Subscription []string `name:"subscription" placeholder:"NAME" help:"The subscriptions of a subscriber."`
	File         string   `name:"file" placeholder:"FILE" help:"Add the line to this access file, which is made when it is missing. A running gateway takes it within seconds."`
}

// Help is the longer text of `ordergate tokens create --help`.
func (createTokenCommand) Help() string {
	return `Prints the token, once: it is stored nowhere, and the access file has only its SHA-256. Without --file, the second line of the output is the line for the access file.

Examples:
  ordergate tokens create shipping --role subscriber --subscription shipping --file access
  ordergate tokens create alice --role operator`
}

func (t *createTokenCommand) Run(c console) error {
	token := auth.NewToken()
	line, err := auth.Line(t.Name, t.Role, t.Subscription, token)
	if err != nil {
		return err
	}
	if t.File == "" {
		_, err := fmt.Fprintf(c.stdout, "%s\n%s\n", token, line)
		return err
	}
	if err := auth.Append(t.File, line); err != nil {
		return err
	}
	fmt.Fprintf(c.stderr, "%s was added to %s; the token is shown only here:\n", t.Name, t.File)
	_, err = fmt.Fprintln(c.stdout, token)
	return err
}
