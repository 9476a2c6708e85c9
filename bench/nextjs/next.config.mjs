// The route connects to a database, which is not there when it is built.
export default { serverExternalPackages: ['pg'] };
