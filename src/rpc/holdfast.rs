//! Our own interface: what a caller that knows this monitor can ask beyond the contract.

use std::rc::Rc;

use capnp::Error;

use super::{conmon::Server, decode, error};
use crate::schema::holdfast_capnp::holdfast::{self, ServePortForwardParams, ServePortForwardResults};

impl holdfast::Server for Server {
    async fn serve_port_forward(
        self: Rc<Self>,
        params: ServePortForwardParams,
        mut results: ServePortForwardResults,
    ) -> Result<(), Error> {
        let _call = self.connection.call();
        let (destination, ports) =
            decode::ports::forward(params.get()?.get_request()?).map_err(|e| error::invalid(&e))?;
        let url = self.services.streams.offer_port_forward(destination, ports).map_err(|e| error::world(&e))?;
        results.get().init_response().set_url(url);
        Ok(())
    }
}
