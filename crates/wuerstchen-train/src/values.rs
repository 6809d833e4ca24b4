//! A flat tensor for every parameter of a module.

use std::collections::HashMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::prelude::*;
use burn::tensor::Gradients;
use wuerstchen::kernels::sum_of_squares;

/// One flat tensor for every parameter, without autodiff.
pub type Values = HashMap<ParamId, Tensor<1>>;

/// All parameters, in the order in which the module is visited.
pub(crate) fn visited<M: Module>(model: &M) -> Vec<ParamId> {
    struct Order(Vec<ParamId>);
    impl ModuleVisitor for Order {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.push(param.id);
        }
    }
    let mut order = Order(Vec::new());
    model.visit(&mut order);
    order.0
}

/// The gradient of every parameter that has one.
pub fn collect_gradients<M: Module>(module: &M, gradients: &Gradients) -> Values {
    struct Collect<'a> {
        gradients: &'a Gradients,
        values: Values,
    }
    impl ModuleVisitor for Collect<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = param.val().grad(self.gradients) {
                self.values.insert(param.id, gradient.flatten(0, D - 1));
            }
        }
    }
    let mut collect = Collect { gradients, values: Values::new() };
    module.visit(&mut collect);
    collect.values
}

/// The L2 norm of all gradients together, summed in the order of the parameters so that it does not
/// depend on hashing.
pub(crate) fn global_norm<M: Module>(module: &M, gradients: &Values) -> Tensor<1> {
    struct InOrder<'a> {
        gradients: &'a Values,
        all: Vec<Tensor<1>>,
    }
    impl ModuleVisitor for InOrder<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.all.extend(self.gradients.get(&param.id).cloned());
        }
    }
    let mut in_order = InOrder { gradients, all: Vec::new() };
    module.visit(&mut in_order);
    let device = in_order.all.first().map(Tensor::device).unwrap_or_default();
    sum_of_squares(in_order.all, &device).sqrt()
}

/// The value of every parameter.
pub fn values<M: Module>(module: &M) -> Values {
    struct Collect(Values);
    impl ModuleVisitor for Collect {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.insert(param.id, param.val().inner().flatten(0, D - 1));
        }
    }
    let mut collect = Collect(Values::new());
    module.visit(&mut collect);
    collect.0
}

/// The module with the given values in place of its own, without autodiff; parameters that have
/// none become zero.
pub fn with_values<M: Module>(module: &M, values: &Values) -> M {
    struct Replace<'a>(&'a Values);
    impl ModuleMapper for Replace<'_> {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let value = self.0.get(&param.id).cloned();
            param.map(|own| match value {
                Some(value) => value.reshape(own.dims()),
                None => own.zeros_like(),
            })
        }
    }
    module.valid().map(&mut Replace(values))
}
